/* The C client for the raw figures: what the server does for a client that does nothing with the jobs.
 *
 *   raw drain HOST PORT STREAM BATCH         XREADGROUP, XACK and XDEL until the stream is empty, as a worker:
 *                                            one round trip per batch, the two writes in one transaction
 *   raw add HOST PORT STREAM JOBS DEPTH DATA pipelined XADD, DEPTH commands per round trip
 *
 * Prints one line of JSON: jobs, seconds, and this process's CPU seconds.
 */
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define GROUP "workers"
#define MAX_BATCH 10000 /* a guess: twenty times a worker's */

static void die(const char *what, const char *why) {
    fprintf(stderr, "raw: %s: %s\n", what, why);
    exit(1);
}

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static double cpu_s(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static redisReply *answer(redisContext *server) {
    void *reply = NULL;
    if (redisGetReply(server, &reply) != REDIS_OK) die("no answer", server->errstr);
    redisReply *read = reply;
    if (read->type == REDIS_REPLY_ERROR) die("refused", read->str);
    return read;
}

/* The entries of a reply of XREADGROUP over one stream; NULL when there are none. */
static redisReply *entries_of(redisReply *reply) {
    return reply->type == REDIS_REPLY_ARRAY && reply->elements ? reply->element[0]->element[1] : NULL;
}

static void append_ids(redisContext *server, const char *head[], int heads, redisReply *entries) {
    static const char *words[MAX_BATCH + 3];
    static size_t sizes[MAX_BATCH + 3];
    int count = heads;
    for (int at = 0; at < heads; at++) {
        words[at] = head[at];
        sizes[at] = strlen(head[at]);
    }
    for (size_t at = 0; at < entries->elements; at++, count++) {
        words[count] = entries->element[at]->element[0]->str;
        sizes[count] = entries->element[at]->element[0]->len;
    }
    redisAppendCommandArgv(server, count, words, sizes);
}

static long drain(redisContext *server, const char *stream, const char *batch) {
    const char *acked[] = {"XACK", stream, GROUP}, *deleted[] = {"XDEL", stream};
    redisReply *fetched = NULL, *entries = NULL;
    long jobs = 0;
    do {
        int writes = 0;
        if (entries) {
            redisAppendCommand(server, "MULTI");
            append_ids(server, acked, 3, entries);
            append_ids(server, deleted, 2, entries);
            redisAppendCommand(server, "EXEC");
            writes = 4;
        }
        redisAppendCommand(server, "XREADGROUP GROUP " GROUP " raw COUNT %s STREAMS %s >", batch, stream);
        if (fetched) freeReplyObject(fetched);
        while (writes--) freeReplyObject(answer(server));
        fetched = answer(server);
        entries = entries_of(fetched);
        if (entries) jobs += entries->elements;
    } while (entries);
    freeReplyObject(fetched);
    return jobs;
}

static void add(redisContext *server, const char *stream, long jobs, long depth, const char *data) {
    for (long sent = 0; sent < jobs;) {
        long now = jobs - sent < depth ? jobs - sent : depth;
        for (long at = 0; at < now; at++) redisAppendCommand(server, "XADD %s * type noop data %s", stream, data);
        for (long at = 0; at < now; at++) freeReplyObject(answer(server));
        sent += now;
    }
}

int main(int count, char *words[]) {
    int is_drain = count == 6 && !strcmp(words[1], "drain"), is_add = count == 8 && !strcmp(words[1], "add");
    if (!is_drain && !is_add) die("usage", "drain HOST PORT STREAM BATCH | add HOST PORT STREAM JOBS DEPTH DATA");
    if (is_drain && (atoi(words[5]) < 1 || atoi(words[5]) > MAX_BATCH)) die("BATCH", "must be between 1 and 10000");
    redisContext *server = redisConnect(words[2], atoi(words[3]));
    if (!server || server->err) die("cannot connect", server ? server->errstr : "out of memory");
    long jobs = is_add ? atol(words[5]) : 0;
    if (is_drain) {
        redisReply *made = redisCommand(server, "XGROUP CREATE %s " GROUP " 0", words[4]);
        if (!made || made->type == REDIS_REPLY_ERROR) die("XGROUP", made ? made->str : server->errstr);
        freeReplyObject(made);
    }
    double began_s = now_s();
    if (is_drain)
        jobs = drain(server, words[4], words[5]);
    else
        add(server, words[4], jobs, atol(words[6]), words[7]);
    printf("{\"jobs\": %ld, \"seconds\": %.6f, \"cpu_s\": %.6f}\n", jobs, now_s() - began_s, cpu_s());
    redisFree(server);
    return 0;
}
