"""`python -m tests.faults.mutants [WORD …]`: the tests are tested, all of them or by the mutants with such a word in their name.

Each mutant breaks one rule in a copy of the tree, and a named test must turn red. A survivor is a missing test. A mutant that
can no longer be applied is a failure too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
STREAMS = "tests/contract/test_streams.py"
VERBS = "tests/contract/test_verbs.py"
SERVE = "tests/contract/test_serve.py"
BOUNDS = "tests/unit/test_bounds.py"
CONSUMER = "tests/unit/test_consumer.py"
CODEC = "tests/unit/test_codec.py"
ISOLATION = "tests/contract/test_isolation.py"
ENGINE = "tests/contract/test_engine.py"
PRODUCER = "tests/contract/test_producer.py"
MODEL = "tests/faults/test_model.py::test_any_verbs_in_any_order_do_what_the_model_says"
CRASH = "tests/faults/test_crash_points.py::test_a_crash_at_the_first_of_each_command_loses_nothing"
FUZZ = "tests/faults/test_fuzz.py::test_whatever_strangers_write_the_worker_goes_on_and_every_entry_has_an_end"
DURABILITY = "tests/faults/test_durability.py"
SENTINEL = "tests/faults/test_sentinel.py"
FORKS = "tests/faults/test_forks.py::test_what_a_handler_forks_is_no_second_worker"
CRON = "tests/unit/test_cron.py"
SCHEDULES = "tests/unit/test_schedules.py"
TICKER = "tests/unit/test_ticker.py"
LANES = "tests/unit/test_lanes.py"
PRIORITIES = "tests/contract/test_priorities.py"
ORDERING = "tests/contract/test_ordering.py"
ORDERS = "tests/contract/test_orders.py"
RULES = "tests/contract/test_rules.py"
OFFLOAD = "tests/unit/test_offload.py"
SETTLE = "tests/unit/test_settle.py"
STATUS = "tests/faults/test_crash.py::test_an_orderly_stop_has_its_status_whatever_handlers_have_left_behind"
HANGS_S = 300
PATIENCE_S = "15"  # a test that must fail should not wait as long as one that must not


@dataclass(frozen=True)
class Mutant:
    """One broken rule: in `file`, `old` becomes `new`; `test` must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = (
    Mutant(
        "no fence",
        "runtime/store/lua/common.lua",
        "return row and row[2] == consumer and row[4] == count",
        "return row",
        f"{VERBS}::test_a_move_without_the_lease_is_refused_and_writes_nothing",
    ),
    Mutant(
        "fence without the delivery count",
        "runtime/store/lua/common.lua",
        "return row and row[2] == consumer and row[4] == count",
        "return row and row[2] == consumer",
        f"{VERBS}::test_the_delivery_count_is_part_of_the_fence",
    ),
    Mutant(
        "no fence for many at once",
        "runtime/store/lua/common.lua",
        "if seen ~= nil then return seen == count end",
        "if seen ~= nil then return true end",
        f"{VERBS}::test_the_fence_is_the_same_for_many_at_once",
    ),
    Mutant(
        "many at once are looked up for whoever holds them",
        "runtime/store/lua/common.lua",
        "'-', '+', asked[s] + 100, consumer)",
        "'-', '+', asked[s] + 100)",
        f"{VERBS}::test_the_fence_is_the_same_for_many_at_once",
    ),
    Mutant(
        "two moves of one lease",
        "runtime/store/lua/common.lua",
        "  known[s][id] = false\n  if count > 1",
        "  if count > 1",
        f"{VERBS}::test_two_moves_of_one_lease_are_one",
    ),
    Mutant(
        "source removed before the destination is written",
        "runtime/store/lua/defer.lua",
        "  redis.call('HSET', MSG, unpack(records))\n",
        "  for s = 1, 4 do if #leaving[s] > 0 then leave(s) end end\n  redis.call('HSET', MSG, unpack(records))\n",
        f"{STREAMS}::test_an_error_concerns_one_move_and_the_rest_is_written",
    ),
    Mutant(
        "one message that is refused fails its chunk",
        "runtime/store/lua/send.lua",
        "local ok, failure = pcall(store, s, due, fields, key)",
        "local ok, failure = true, store(s, due, fields, key)",
        f"{PRODUCER}::test_a_message_that_cannot_be_stored_is_its_senders_error_and_nobody_elses",
    ),
    Mutant(
        "no mark where a message was refused",
        "runtime/store/lua/send.lua",
        "redis.pcall('SET', mark, cmsgpack.pack(reply), 'PX', life_ms)",
        "if #refused == 0 then redis.pcall('SET', mark, cmsgpack.pack(reply), 'PX', life_ms) end",
        f"{PRODUCER}::test_a_repeated_chunk_of_which_some_were_refused_answers_the_same_and_stores_nothing_again",
    ),
    Mutant(
        "a message whose time could not be written runs at once",
        "runtime/store/lua/send.lua",
        "    redis.call('HDEL', MSG, member) -- a message",
        "    -- a message",
        f"{PRODUCER}::test_a_message_that_cannot_be_stored_is_its_senders_error_and_nobody_elses",
    ),
    Mutant(
        "no bound on the board's connections",
        "board/site.py",
        "if len(staying) >= MAX_CONNECTIONS:",
        "if False:",
        "tests/faults/test_files.py::test_however_many_connect_and_are_silent_the_next_one_is_answered_and_the_oldest_leaves",
    ),
    Mutant(
        "what has no connection yet is forgotten",
        "board/site.py",
        "elif connection.is_made or connection.has_asked:",
        "else:",
        "tests/faults/test_files.py::test_whoever_connects_in_one_turn_of_the_loop_is_counted_and_leaves_as_others_do",
    ),
    Mutant(
        "aiohttp has the log for itself",
        "board/site.py",
        "logger=_Log(), ",
        "",
        "tests/faults/test_files.py::test_bad_requests_are_a_few_short_lines_in_the_log_however_many_come",
    ),
    Mutant(
        "the folder is looked at and not what is in it",
        "runtime/folders.py",
        'why = why_not(path) if path.exists() else ""',
        'why = ""',
        "tests/commands/test_folders.py::test_each_module_is_looked_at_when_it_is_found",
    ),
    Mutant(
        "any key of a MessagePack map is taken",
        "runtime/bounds.py",
        "if first not in _NUMBER_KEYS:",
        "if False:",
        f"{BOUNDS}::test_keys_that_are_lists_fractions_or_nothing_are_refused_where_the_contract_leaves_them_open",
    ),
    Mutant(
        "any JSON number is taken",
        "runtime/bounds.py",
        "if len(_FAR_NUMBER.findall(_outside_of_strings(data, _NOT_EXPONENTS))) > MAX_FAR_NUMBERS:",
        "if False:",
        f"{BOUNDS}::test_up_to_1000_numbers_near_the_ends_of_a_float_are_taken_and_all_others_without_a_bound",
    ),
    Mutant(
        "all keys are compared as fast as numbers",
        "runtime/bounds.py",
        "    return min([own, *inner])\n",
        "    return MAX_HASHED\n",
        f"{BOUNDS}::test_however_long_two_members_take_to_compare_they_do_not_hold_the_loop",
    ),
    Mutant(
        "an object costs what it says",
        "runtime/bounds.py",
        "        freedom.has_objects = True\n",
        "        pass\n",
        f"{BOUNDS}::test_up_to_10000_objects_that_cost_more_than_their_bytes_are_taken",
    ),
    Mutant(
        "a time of birth that lies ahead is believed",
        "runtime/jobs.py",
        "return at_ms if at_ms < now_ms else now_ms",
        "return at_ms",
        f"{CODEC}::test_a_job_whose_id_lies_ahead_is_born_when_it_was_fetched_in_all_its_attempts",
    ),
    Mutant(
        "the closed stream goes before its copy is written",
        "runtime/store/lua/reopen.lua",
        "local function move(id, fields)\n",
        "local function move(id, fields)\n  redis.call('XDEL', closed, id)\n  if id then return 0 end\n",
        "tests/contract/test_closed.py::test_a_closed_stream_is_moved_whole_with_what_is_parked_and_held",
    ),
    Mutant(
        "a stream that is closed again stays so",
        "runtime/store/lua/reopen.lua",
        "if may_set_aside and last_ms_of(stream) > now + ahead_ms then",
        "if may_set_aside and redis.call('EXISTS', closed) == 0 and last_ms_of(stream) > now + ahead_ms then",
        "tests/contract/test_closed.py::test_a_stream_that_is_closed_again_before_all_is_moved_opens_with_the_next_call",
    ),
    Mutant(
        "nobody looks where the dead letters end",
        "runtime/store/lua/ends.lua",
        "  if s <= #STREAMS or KEYS[s] == DEAD then\n",
        "  if s <= #STREAMS then\n",
        "tests/contract/test_closed.py::test_dead_letters_that_take_no_more_are_told_of_and_opened_with_all_that_was_in_them",
    ),
    Mutant(
        "renewal without the owner check",
        "runtime/store/lua/renew.lua",
        "if holds(s, id, consumer, tonumber(ARGV[i + 2])) then",
        "if true then",
        f"{VERBS}::test_a_late_renewal_does_not_steal_the_job_back",
    ),
    Mutant(
        "heartbeat without JUSTID",
        "runtime/store/lua/renew.lua",
        "    call[#call + 1] = 'JUSTID'\n",
        "",
        f"{VERBS}::test_a_renewal_keeps_the_count_and_resets_the_idle_time",
    ),
    Mutant(
        "a worker starts on a queue of whatever layout",
        "runtime/store/base.py",
        "if answer is None or 1 <= version <= LAYOUT:",
        "if answer is None or 1 <= version:",
        f"{STREAMS}::test_a_queue_of_a_newer_layout_is_left_alone_and_its_worker_told_to_be_upgraded",
    ),
    Mutant(
        "group made at the end",
        "runtime/store/base.py",
        'key, GROUP, "0", "MKSTREAM")',
        'key, GROUP, "$", "MKSTREAM")',
        f"{STREAMS}::test_the_group_is_made_again_at_the_beginning_and_what_was_there_is_delivered",
    ),
    Mutant(
        "a sweep that skips live consumers",
        "runtime/store/lua/reclaim.lua",
        "if string.sub(consumer, 1, 1) ~= '~' and",
        "if string.sub(consumer, 1, 1) ~= '~' and tonumber(redis.call('ZSCORE', WORKERS, consumer) or '0') <= now and",
        f"{VERBS}::test_a_delivery_that_a_live_worker_never_saw_does_not_count",
    ),
    Mutant(
        "a lot that is full waits for its next look",
        "runtime/worker/fetcher.py",
        "                self._are_lots_full = True\n",
        "                self._are_lots_full = False\n",
        "tests/contract/test_lots.py::test_a_lot_that_gives_all_it_is_asked_for_is_asked_again_at_once",
    ),
    Mutant(
        "lots before everything",
        "runtime/worker/parking.py",
        "self._owed + capacity * part)",
        "self._owed + capacity)",
        "tests/contract/test_lots.py::test_a_lot_and_the_streams_share_by_weight_and_neither_starves",
    ),
    Mutant(
        "a job without a place is given back",
        "runtime/settle.py",
        "        return Park(lot_of(handler.contract.type, job.envelope.version))\n    if _is",
        "        return RELEASE\n    if _is",
        "tests/unit/test_settle.py::test_a_job_without_a_place_is_parked_for_whoever_has_one_but_a_suspect_goes_back_to_the_suspects",
    ),
    Mutant(
        "taken from lots without a place",
        "runtime/worker/parking.py",
        "wanted[places] = places.capacity_soon(coming(places))",
        "wanted[places] = ANY_NUMBER",
        "tests/contract/test_places.py::test_a_worker_takes_from_lots_only_what_it_has_a_place_for",
    ),
    Mutant(
        "who waits for a place keeps his lane",
        "runtime/worker/admission.py",
        "                if not fits[places]:",
        "                if False:",
        "tests/contract/test_places.py::test_what_finds_no_thread_leaves_its_lane_and_another_worker_runs_it",
    ),
    Mutant(
        "a free place waits for the bell",
        "runtime/worker/fetcher.py",
        "        if places in self._ctx.parked.awaited:\n            self.look_again()",
        "        pass",
        "tests/contract/test_places.py::test_a_place_that_becomes_free_is_filled_at_once_from_a_lot_though_no_bell_rings",
    ),
    Mutant(
        "old lots are buried by whoever comes first",
        "runtime/worker/maintenance.py",
        "        if now_s < self._began_s + self._unknown_after_s:\n            return\n",
        "",
        "tests/contract/test_lots.py::test_a_lot_is_buried_only_when_nobody_has_known_its_type_for_long_however_old_it_is",
    ),
    Mutant(
        "guard off",
        "runtime/store/lua/reclaim.lua",
        "if guard(now, lease_ms) < lease_ms then return {0, 0, 1} end",
        "guard(now, lease_ms)",
        f"{VERBS}::test_after_a_gap_in_all_beats_nobody_is_robbed_for_one_lease",
    ),
    Mutant(
        "whoever stood still once is dead",
        "runtime/store/lua/reclaim.lua",
        "still[consumer] == lives_until",
        "still[consumer] ~= nil",
        f"{VERBS}::test_a_row_that_stands_still_is_dead_whatever_the_idle_time_says",
    ),
    Mutant(
        "frozen, and on as if nothing had been",
        "runtime/worker/lanes.py",
        "if not self.may_start(now_s):",
        "if False:",
        "tests/contract/test_engine.py::test_a_worker_that_stood_still_starts_nothing_before_its_next_beat",
    ),
    Mutant(
        "frozen while a job waits for its thread, and on as if nothing had been",
        "runtime/worker/lanes.py",
        "if not self.inbox.may_start(started_s):",
        "if False:",
        "tests/unit/test_lanes.py::test_a_job_that_has_its_place_when_nothing_may_start_is_given_back_and_so_is_the_place",
    ),
    Mutant(
        "a lost delivery is not held while it is given back",
        "runtime/worker/fetcher.py",
        "            self._ctx.held.add(lease.stream, [lease])\n",
        "            pass\n",
        "tests/contract/test_engine.py::test_a_lost_delivery_that_is_given_back_twice_runs_once",
    ),
    Mutant(
        "a verdict of the beat that nobody heard",
        "runtime/worker/admission.py",
        "        if ctx.leases.is_late(asked_s):\n            ctx.ledger.release(claimed.ready)",
        "        if False:\n            ctx.ledger.release(claimed.ready)",
        "tests/contract/test_engine.py::test_what_a_beat_took_while_its_key_was_claimed_does_not_start",
    ),
    Mutant(
        "what never ran is acquitted",
        "runtime/worker/isolation.py",
        "if len(self._isolated) == 1:",
        "if False:",
        "tests/contract/test_isolation.py::test_a_suspect_that_was_handed_out_and_did_not_run_keeps_its_strikes",
    ),
    Mutant(
        "suspects are handed out where no thread is free",
        "runtime/worker/isolation.py",
        "self._startable(), is_clean",
        "self._types, is_clean",
        "tests/contract/test_places.py::test_suspects_without_a_thread_keep_no_others_waiting",
    ),
    Mutant(
        "who is back is forgotten",
        "runtime/store/lua/forget.lua",
        "if ARGV[2] and",
        "if false and",
        f"{VERBS}::test_a_consumer_that_holds_something_is_not_forgotten",
    ),
    Mutant(
        "what came late waits for the next beat",
        "runtime/worker/admission.py",
        "if held and ctx.leases.is_late(asked_s):",
        "if False:",
        "tests/contract/test_engine.py::test_what_a_late_reply_brings_is_renewed_before_it_runs",
    ),
    Mutant(
        "leases that end a moment before their worker",
        "runtime/store/lua/reclaim.lua",
        "local LATER = 1.25",
        "local LATER = 1",
        f"{VERBS}::test_what_a_live_worker_holds_is_no_lost_delivery_within_its_own_lease_and_a_moment",
    ),
    Mutant(
        "the bell is unblocked while writes are held back",
        "runtime/streams.py",
        '("MULTI",), ("CLIENT", "UNBLOCK", self._reader.client_id), nothing, ("EXEC",)',
        '("CLIENT", "UNBLOCK", self._reader.client_id)',
        f"{STREAMS}::test_a_server_that_holds_writes_back_survives_that_the_bell_is_unrung",
    ),
    Mutant(
        "release that keeps the count",
        "runtime/store/lua/common.lua",
        "0, id, 'RETRYCOUNT', count, 'JUSTID')",
        "0, id, 'JUSTID')",
        f"{VERBS}::test_a_released_job_comes_back_through_take_with_the_count_it_had",
    ),
    Mutant(
        "DELCONSUMER without looking",
        "runtime/store/lua/forget.lua",
        "elseif #held == 0 then",
        "else",
        f"{VERBS}::test_a_consumer_that_holds_something_is_not_forgotten",
    ),
    Mutant(
        "promotion removes before it adds",
        "runtime/store/lua/promote.lua",
        "  local id = redis.call('XADD', KEYS[s], '*', unpack(fields))\n",
        "  redis.call('HDEL', MSG, member)\n  redis.call('ZREM', DUE, member)\n"
        "  local id = redis.call('XADD', KEYS[s], '*', unpack(fields))\n",
        f"{STREAMS}::test_a_job_whose_stream_cannot_be_written_stays_among_the_delayed",
    ),
    Mutant(
        "promotion without pcall",
        "runtime/store/lua/promote.lua",
        "local ok, failure = pcall(promote, member, records[at])",
        "local ok, failure = true, promote(member, records[at])",
        f"{STREAMS}::test_a_job_whose_stream_cannot_be_written_stays_among_the_delayed",
    ),
    Mutant(
        "a redelivery taken for a copy",
        "runtime/store/lua/common.lua",
        "return not owner or owner == place or not place_counts(owner, key)",
        "return not owner or not place_counts(owner, key)",
        f"{VERBS}::test_a_redelivery_of_the_owner_is_never_taken_for_a_copy",
    ),
    Mutant(
        "done without a fence after a restart",
        "runtime/streams.py",
        "if job.run_id != run_id or job.count != 1",
        "if job.count != 1",
        f"{STREAMS}::test_done_after_a_server_restart_is_fenced_since_entry_ids_can_recur",
    ),
    Mutant(
        "flusher drops a batch on error",
        "runtime/worker/flusher.py",
        "                self._ctx.ledger.put_back(part)",
        "                pass",
        "tests/contract/test_wire.py::test_a_flush_without_an_answer_is_written_again_and_no_lease_stays_behind",
    ),
    Mutant(
        "no hard deadline",
        "runtime/leaving.py",
        "        timer = threading.Timer(wait_s, ",
        "        timer = threading.Timer(99 * wait_s, ",
        "tests/faults/test_stop.py::test_the_hard_deadline_holds_when_a_handler_holds_the_loop",
    ),
    Mutant(
        "a keyed job refused at admit stays held",
        "runtime/worker/admission.py",
        "                ctx.held.remove([job])\n                continue\n",
        "                continue\n",
        f"{ENGINE}::test_a_keyed_job_that_was_taken_away_before_its_key_was_claimed_is_let_go",
    ),
    Mutant(
        "after the bell the next request waits for the flush",
        "runtime/worker/fetcher.py",
        "        await asyncio.sleep(0)\n\n    def _wait_ms",
        "\n    def _wait_ms",
        f"{ENGINE}::test_after_the_bell_more_is_asked_for_at_once",
    ),
    Mutant(
        "a fetch as large as there is capacity",
        "runtime/worker/fetcher.py",
        "most = self.entries(self._budget.bytes)",
        "most = 10**9",
        f"{ENGINE}::test_large_messages_over_a_slow_line_are_all_done",
    ),
    Mutant(
        "a flush as large as it is",
        "runtime/worker/flusher.py",
        "    if whole <= most_bytes:\n",
        "    if True:\n",
        f"{ENGINE}::test_a_flush_that_is_too_large_for_the_line_goes_in_parts_that_are_not",
    ),
    Mutant(
        "what a lost reply brought waits for the lease",
        "runtime/worker/fetcher.py",
        "                    self._has_lost = True\n",
        "",
        f"{ENGINE}::test_what_a_lost_reply_brought_runs_at_once_and_not_after_a_lease",
    ),
    Mutant(
        "too large is handed out all the same",
        "runtime/store/lua/common.lua",
        "        if size > most_of_one then\n",
        "        if false then\n",
        f"{ENGINE}::test_an_entry_too_large_for_any_answer_is_a_dead_letter_without_its_body_and_holds_up_nobody",
    ),
    Mutant(
        "a time far ahead is set back in mind alone",
        "runtime/store/lua/serve.lua",
        "    tat = furthest\n    write_rate(name, tat)\n",
        "    tat = furthest\n",
        f"{SERVE}::test_a_time_far_ahead_is_set_back_and_written",
    ),
    Mutant(
        "permits are counted, not named",
        "runtime/store/lua/serve.lua",
        "redis.pcall('ZREM', key, ARGV[i + 1])",
        "redis.pcall('ZPOPMIN', key)",
        f"{SERVE}::test_no_more_run_than_the_limit_and_each_that_is_free_again_lets_one_start",
    ),
    Mutant(
        "what does not start is charged",
        "runtime/store/lua/serve.lua",
        "local cost = is_free_of_charge(row[2]) and 0 or 1",
        "local cost = type(row[2]) == 'table' and 1 or 0",
        f"{SERVE}::test_what_does_not_start_comes_free_of_charge_before_what_does",
    ),
    Mutant(
        "an exp of 0 makes a start free of charge",
        "runtime/store/lua/serve.lua",
        "tonumber(exp) > 0 and tonumber(exp) <= now",
        "tonumber(exp) <= now",
        f"{SERVE}::test_an_exp_that_does_not_end_a_job_is_none",
    ),
    Mutant(
        "a permit is freed while somebody runs with it",
        "runtime/store/lua/serve.lua",
        "if #keys == 0 or is_running(ARGV[i + 1]) then return end",
        "if #keys == 0 then return end",
        f"{SERVE}::test_a_place_that_somebody_holds_again_is_not_freed",
    ),
    Mutant(
        "what waits in a lot keeps its permit",
        "runtime/store/lua/serve.lua",
        "  return row and string.sub(row[2], 1, 1) ~= '~'\n",
        "  return row\n",
        f"{SERVE}::test_a_full_gate_takes_back_the_permits_of_what_is_gone_or_waits_in_a_lot",
    ),
    Mutant(
        "a gate looks at its permits only when none is left",
        "runtime/store/lua/serve.lua",
        "  if free >= n then return free end\n",
        "  if free > 0 then return free end\n",
        f"{SERVE}::test_a_permit_that_nobody_uses_is_found_while_others_come_and_go",
    ),
    Mutant(
        "what waited before groups were bounded asks no gate of its group",
        "runtime/store/lua/serve.lua",
        " == OVERFLOW or group == '' and is_by_group then group = nil end",
        " == OVERFLOW then group = nil end",
        f"{SERVE}::test_what_was_parked_before_groups_were_bounded_asks_the_gate_of_its_group_too",
    ),
    Mutant(
        "a slow answer counts as none",
        "runtime/store/resp.py",
        "        if seen != self._seen or",
        "        if",
        "tests/unit/test_resp.py::test_an_answer_that_comes_slowly_is_awaited",
    ),
    Mutant(
        "a move that errs fails the flush",
        "runtime/worker/flusher.py",
        "        self._keep_apart(settled)\n",
        '        self._keep_apart(settled)\n        if settled.error:\n            raise StoreUnavailable("all wait for one")\n',
        f"{ENGINE}::test_a_move_that_always_errors_holds_up_nobody",
    ),
    Mutant(
        "waiting for a thread counts against the deadline",
        "runtime/places.py",
        "            BEGINS.get()()\n",
        "            pass\n",
        f"{OFFLOAD}::test_a_function_says_that_it_begins_when_it_has_its_slot",
    ),
    Mutant(
        "a cancel that is swallowed is the last one",
        "runtime/worker/lanes.py",
        "            self.deadline_s = self.clock() + RECUT_S\n",
        "            self.deadline_s = NEVER\n",
        f"{ENGINE}::test_a_handler_that_swallows_its_cancel_is_cut_again_and_the_lane_lives",
    ),
    Mutant(
        "no start while memory is full",
        "runtime/store/base.py",
        'if not (is_code(answer, "BUSYGROUP") or is_code(answer, "OOM")):',
        'if not is_code(answer, "BUSYGROUP"):',
        f"{STREAMS}::test_a_worker_can_start_when_memory_is_full",
    ),
    Mutant(
        "what stands behind a failed chunk is sent",
        "runtime/sender.py",
        "[behind for behind in self._waiting if behind.flow is waiting.flow]",
        "[]",
        "tests/unit/test_sender.py::test_of_one_flow_nothing_behind_a_failed_chunk_is_sent",
    ),
    Mutant(
        "a new chunk for each repeat",
        "runtime/sender.py",
        "chunk = chunk or self._next_chunk()\n",
        "chunk = chunk or self._next_chunk()\n        if chunk:\n            chunk.mark = secrets.token_hex(8)\n",
        f"{PRODUCER}::test_a_lost_reply_does_not_enqueue_twice_and_the_answer_is_the_first_one",
    ),
    Mutant(
        "an idle line is believed",
        "runtime/store/connection.py",
        "time() - self._heard_s > IDLE_S",
        "time() - self._heard_s > 1e9",
        f"{PRODUCER}::test_a_line_that_was_cut_while_it_was_idle_is_found_by_a_question_and_nobody_hears_of_it",
    ),
    Mutant(
        "the mark of a key outlives its job",
        "runtime/store/lua/done.lua",
        "  free_key(ARGV[i + 3], STREAMS[s] .. ' ' .. id)\n",
        "",
        f"{VERBS}::test_the_mark_of_a_key_goes_with_its_job",
    ),
    Mutant(
        "done deletes anybody's mark",
        "runtime/store/lua/common.lua",
        "if key and key ~= '' and redis.pcall('GET', mark_of(key)) == place then redis.pcall('DEL'",
        "if key and key ~= '' then redis.pcall('DEL'",
        f"{VERBS}::test_the_mark_of_a_key_stays_with_whom_it_names",
    ),
    Mutant(
        "patience only on the line",
        "runtime/sender.py",
        "while self._waiting and (self._waiting[0].end_s <= now_s or",
        "while self._waiting and (",
        f"{PRODUCER}::test_all_who_wait_give_up_when_their_own_patience_is_over",
    ),
    Mutant(
        "what was cancelled is sent all the same",
        "runtime/sender.py",
        "if waiting.done.done():\n                self._waiting",
        "if False:\n                self._waiting",
        f"{PRODUCER}::test_what_was_given_up_before_it_was_on_the_line_is_not_sent",
    ),
    Mutant(
        "what was cancelled while the line was asked is sent all the same",
        "runtime/store/connection.py",
        "            elif self._is_idle():",
        "            elif False:",
        f"{PRODUCER}::test_what_is_cancelled_while_there_is_no_line_is_not_sent",
    ),
    Mutant(
        "a chunk for which nobody waits any more is repeated",
        "runtime/sender.py",
        "if self._is_awaited():  # still",
        "if True:  # still",
        f"{PRODUCER}::test_what_is_cancelled_while_there_is_no_line_is_not_sent",
    ),
    Mutant(
        "whose chunk cannot be packed is never told",
        "runtime/sender.py",
        "refused = chunk.taken if chunk is not None else []",
        "refused: list[_Waiting] = []",
        f"{PRODUCER}::test_a_chunk_that_cannot_be_packed_is_told_to_its_callers_and_the_next_ones_are_sent",
    ),
    Mutant(
        "any error is taken for a word of the server that it wrote nothing",
        "runtime/store/sends.py",
        "if answer.code in NOTHING_WRITTEN:",
        "if True:",
        f"{PRODUCER}::test_what_an_answer_of_somebody_between_says_nothing_of_is_stored_once_and_told_so",
    ),
    Mutant(
        "whatever comes is taken for the answer",
        "runtime/store/sends.py",
        "if not _is_reply(answer):",
        "if False:",
        f"{PRODUCER}::test_after_a_false_answer_the_repeat_brings_the_true_one",
    ),
    Mutant(
        "the first address of a name has all the time",
        "runtime/store/connection.py",
        "for left in range(len(addresses), 1, -1):",
        "for left in range(0):",
        f"{PRODUCER}::test_of_a_name_with_several_addresses_a_silent_one_is_passed_over",
    ),
    Mutant(
        "a cancelled send_many sends its further chunks",
        "runtime/sender.py",
        "            task.cancel()\n",
        "            pass\n",
        f"{PRODUCER}::test_of_a_cancelled_send_many_no_further_chunk_is_sent",
    ),
    Mutant(
        "acknowledged and not deleted",
        "runtime/store/lua/common.lua",
        "  redis.call('XDEL', KEYS[s], unpack(leaving[s]))\n",
        "",
        MODEL,
    ),
    Mutant(
        "what a dead worker held is nobody's suspect",
        "runtime/store/lua/reclaim.lua",
        "park(s, entry[1], SUSPECT, math.max(1, entry[4]))",
        "park(s, entry[1], FREE, 0)",
        f"{VERBS}::test_what_a_dead_worker_held_is_suspect_and_keeps_its_count",
    ),
    Mutant(
        "a suspect beside young jobs",
        "runtime/store/lua/isolate.lua",
        "(calm_ms >= 0 and calm_ms < isolation_ms)",
        "false",
        f"{VERBS}::test_beside_a_suspect_runs_only_what_has_run_as_long_as_the_isolation",
    ),
    Mutant(
        "dead-lettered at the second strike",
        "runtime/store/lua/isolate.lua",
        "STRIKES_OUT = 500, 3",
        "STRIKES_OUT = 500, 2",
        f"{VERBS}::test_three_strikes_are_handed_out_to_be_dead_lettered_without_calm",
    ),
    Mutant(
        "a death after the isolation is evidence",
        "runtime/store/lua/acquit.lua",
        "redis.pcall('HDEL', ISOLATIONS, consumer)\n",
        "",
        f"{VERBS}::test_a_death_after_the_isolation_is_no_evidence",
    ),
    Mutant(
        "others start before the end of an isolation is confirmed",
        "runtime/worker/isolation.py",
        "            await self._end_isolation()\n            self._turn_until_s",
        "            self._isolated.clear()\n            self._turn_until_s",
        f"{ISOLATION}::test_nothing_starts_beside_what_outlived_its_isolation_before_the_store_has_confirmed_that",
    ),
    Mutant(
        "one isolation at a time, of all workers",
        "runtime/store/lua/isolate.lua",
        "'(' .. ms(now), '+inf') / 2",
        "'(' .. ms(now), '+inf') / 1000",
        f"{VERBS}::test_half_of_the_workers_that_live_may_isolate_at_a_time",
    ),
    Mutant(
        "who died twice with others is never alone",
        "runtime/store/lua/isolate.lua",
        "local ALONE = 4",
        "local ALONE = 400",
        f"{VERBS}::test_who_dies_again_runs_in_groups_of_the_root_of_all_that_wait_twice_and_then_alone",
    ),
    Mutant(
        "an isolation of a minute at most",
        "runtime/store/lua/isolate.lua",
        "base_ms * 2 ^ (suspect.count - 1), timeouts",
        "base_ms * 2 ^ (suspect.count - 1), 60000, timeouts",
        f"{VERBS}::test_isolation_doubles_up_to_the_timeout_whatever_that_is",
    ),
    Mutant(
        "a strike that a longer isolation has refuted stays",
        "runtime/store/lua/acquit.lua",
        "    redis.pcall('HDEL', STRIKES, stands_at(s, id))\n",
        "",
        f"{VERBS}::test_who_outlives_its_isolation_has_no_strikes_any_more",
    ),
    Mutant(
        "what was given back and taken again is let go of",
        "runtime/worker/flusher.py",
        "if move.lease.taken_s != taken_s]",
        "if False]",
        "tests/unit/test_flusher.py::test_what_was_given_back_and_taken_again_before_the_answer_was_read_is_given_back_again",
    ),
    Mutant(
        "a part that was written goes back with the rest",
        "runtime/worker/flusher.py",
        "                parts.popleft()\n",
        "                pass\n",
        "tests/unit/test_flusher.py::test_a_batch_in_parts_loses_none_where_one_of_them_fails",
    ),
    Mutant(
        "an error to the question what was lost ends the search",
        "runtime/worker/fetcher.py",
        "        lost = [lease for lease in await",
        "        self._has_lost = False\n        lost = [lease for lease in await",
        "tests/unit/test_fetcher.py::test_what_a_lost_answer_brought_is_given_back_in_the_next_round_and_comes_again",
    ),
    Mutant(
        "what is held is given back as lost",
        "runtime/worker/fetcher.py",
        "if not self._ctx.held.has(lease.stream, lease.entry)]",
        "]",
        "tests/unit/test_fetcher.py::test_what_is_held_is_not_given_back_with_what_was_lost",
    ),
    Mutant(
        "a cancel at the claim of keys leaves their jobs held",
        "runtime/worker/admission.py",
        "        except (StoreUnavailable, asyncio.CancelledError):\n            ctx.ledger.release(keyed)",
        "        except StoreUnavailable:\n            ctx.ledger.release(keyed)",
        "tests/unit/test_admission.py::test_a_cancel_while_keys_are_claimed_gives_their_jobs_back",
    ),
    Mutant(
        "a cancel at the renewal of what came late leaves it held",
        "runtime/worker/admission.py",
        "        except (StoreUnavailable, asyncio.CancelledError):\n            ctx.ledger.release(jobs)",
        "        except StoreUnavailable:\n            ctx.ledger.release(jobs)",
        "tests/unit/test_admission.py::test_what_came_late_is_given_back_where_its_renewal_is_not_confirmed_in_time",
    ),
    Mutant(
        "a renewal that is late too counts",
        "runtime/worker/admission.py",
        "        if not ctx.leases.is_late(asked_s):\n            return ours",
        "        if True:\n            return ours",
        "tests/unit/test_admission.py::test_what_came_late_is_given_back_where_its_renewal_is_not_confirmed_in_time",
    ),
    Mutant(
        "several that ran together are acquitted",
        "runtime/worker/isolation.py",
        "self._isolated if len(self._isolated) == 1 else ()",
        "self._isolated",
        "tests/unit/test_isolation.py::test_of_several_that_ran_together_the_end_says_nothing_of_any",
    ),
    Mutant(
        "an end of the isolation that was not confirmed is forgotten",
        "runtime/worker/isolation.py",
        "        await self._ctx.streams.acquit(",
        "        self._may_be_named = False\n        await self._ctx.streams.acquit(",
        "tests/unit/test_isolation.py::test_after_an_answer_that_did_not_come_nothing_starts_before_the_store_names_nobody",
    ),
    Mutant(
        "a worker that is never calm keeps the isolation",
        "runtime/worker/isolation.py",
        "return True\n            await self._leave(now_s)\n            return False",
        "return True\n            return True",
        "tests/unit/test_isolation.py::test_until_what_runs_beside_is_calm_the_place_is_kept_and_then_given_up_for_a_lease",
    ),
    Mutant(
        "the row is renewed before the leases",
        "runtime/worker/heartbeat.py",
        "        refused = await store.renew([",
        "        await store.beat(self._row())\n        refused = await store.renew([",
        "tests/unit/test_heartbeat.py::test_of_a_worker_that_dies_in_a_beat_the_row_ends_no_later_than_its_leases_were_renewed",
    ),
    Mutant(
        "after an error the next beat is as far away as ever",
        "runtime/worker/heartbeat.py",
        "                    wait_s /= 6",
        "                    wait_s /= 1",
        "tests/unit/test_heartbeat.py::test_the_thread_goes_on_after_errors_and_tries_again_long_before_the_next_beat",
    ),
    Mutant(
        "a worker that may have slept takes from others",
        "runtime/worker/maintenance.py",
        "        if not self._ctx.leases.may_reclaim:\n            return\n",
        "",
        "tests/unit/test_maintenance.py::test_a_worker_that_may_have_slept_takes_nothing_from_others",
    ),
    Mutant(
        "counters whose answer was lost are added again",
        "runtime/worker/maintenance.py",
        "                self._counted[name] = total\n",
        "                pass\n",
        "tests/unit/test_maintenance.py::test_counters_are_added_once_or_lost_and_never_added_twice",
    ),
    Mutant(
        "the blocked read is cancelled at a stop",
        "runtime/consumer.py",
        "                await self.streams.unblock()\n            except",
        "                await asyncio.sleep(0)\n            except",
        f"{CONSUMER}::test_an_idle_worker_is_woken_at_a_stop_and_its_read_is_not_cancelled",
    ),
    Mutant(
        "a report about an older lease hits the newer one",
        "runtime/consumer.py",
        "is_same = lease.count == count and lease.taken_s < beat.sent_s and lease in self.held",
        "is_same = lease in self.held",
        f"{CONSUMER}::test_a_refused_lease_is_dropped_where_it_is_still_the_one_that_was_asked_for",
    ),
    Mutant(
        "what waits in a busy worker's inbox counts as a former suspect",
        "runtime/consumer.py",
        "return 0.0, is_clean",
        "return 0.0, False",
        f"{CONSUMER}::test_beside_a_suspect_stands_what_waits_in_the_inbox_and_only_a_former_suspect_is_in_its_way",
    ),
    Mutant(
        "who has a strike runs beside other suspects",
        "runtime/store/lua/isolate.lua",
        "if (rank ~= STRUCK or is_clean) and",
        "if true and",
        f"{VERBS}::test_of_whom_a_worker_died_runs_first_where_no_other_former_suspect_does_and_else_not_at_all",
    ),
    Mutant(
        "the living bear witness against a job",
        "runtime/store/lua/renew.lua",
        "    acquit(s, id, consumer)\n",
        "",
        f"{VERBS}::test_a_process_that_learns_that_its_lease_is_lost_is_no_witness",
    ),
    Mutant(
        "a late tick interrupts whom the loop kept waiting",
        "runtime/consumer.py",
        "            was_late = now_s - before_s > LATE_S and not was_late\n",
        "",
        "tests/faults/test_loop.py::test_jobs_beside_one_that_blocks_the_loop_past_their_deadline_have_a_turn_to_end",
    ),
    Mutant(
        "a reserved lane takes whatever comes",
        "runtime/worker/lanes.py",
        "(None if is_reserved else self.others)",
        "self.others",
        f"{PRIORITIES}::test_critical_runs_at_once_while_all_other_lanes_are_busy_and_low_waits",
    ),
    Mutant(
        "capacity of others counts reserved lanes",
        "runtime/consumer.py",
        "return len(self.lanes) + read_ahead - len(self.held) - reserved, reserved",
        "return len(self.lanes) + read_ahead - len(self.held), reserved",
        f"{CONSUMER}::test_what_others_may_fetch_is_less_by_the_lanes_that_are_kept_for_critical",
    ),
    Mutant(
        "what is read ahead of others keeps CRITICAL out",
        "runtime/consumer.py",
        "            return 0, reserved  # else",
        "            return 0, 0  # else",
        f"{CONSUMER}::test_a_full_read_ahead_of_others_does_not_keep_critical_out",
    ),
    Mutant(
        "what CRITICAL runs in an ordinary lane shuts a reserved one",
        "runtime/consumer.py",
        "if critical and self.config.reserved_lanes:",
        "if False:",
        f"{CONSUMER}::test_what_runs_of_critical_in_other_lanes_needs_no_reserved_one",
    ),
    Mutant(
        "reserved lanes with a blocking read",
        "runtime/worker/plan.py",
        "    can_wait = view.capacity >= view.wait_from\n",
        "    can_wait = view.capacity + view.reserved > 0\n",
        f"{PRIORITIES}::test_where_no_lane_is_free_for_others_no_read_blocks",
    ),
    Mutant(
        "a lane that becomes free while CRITICAL is asked waits",
        "runtime/worker/fetcher.py",
        "        timer = asyncio",
        "        self.capacity_freed.clear()\n        timer = asyncio",
        "tests/unit/test_fetcher.py::test_a_lane_that_becomes_free_while_critical_alone_is_asked_is_not_missed",
    ),
    Mutant(
        "a reserved lane that a handler ended takes whatever comes",
        "runtime/consumer.py",
        "self._open_lane(group, lane.is_reserved)",
        "self._open_lane(group, False)",
        f"{PRIORITIES}::test_a_reserved_lane_that_a_handler_ends_is_reserved_again",
    ),
    Mutant(
        "strict in name only",
        "runtime/worker/plan.py",
        "        if self._is_strict:  #",
        "        if False:  #",
        f"{PRIORITIES}::test_in_strict_order_nothing_starts_while_something_of_a_higher_priority_waits",
    ),
    Mutant(
        "a pause that the wait in Redis does not know",
        "runtime/worker/fetcher.py",
        "return self._paused | self._admission.resting()",
        "return frozenset(self._admission.resting())",
        f"{PRIORITIES}::test_a_paused_priority_starts_nothing_and_what_waited_runs_at_once_when_it_goes_on",
    ),
    Mutant(
        "lots of a paused priority are taken from",
        "runtime/worker/fetcher.py",
        " if opening.stream in asked]",
        "]",
        f"{PRIORITIES}::test_nothing_is_taken_from_the_lots_of_a_paused_priority",
    ),
    Mutant(
        "the end of a pause waits for the bell",
        "runtime/worker/fetcher.py",
        "            self._is_quiet = False  # that was said of others\n            self.look_again()\n",
        "",
        "tests/unit/test_fetcher.py::test_a_wait_that_knew_of_a_pause_does_not_say_that_nothing_is_there_when_it_has_ended",
    ),
    Mutant(
        "all priorities alike",
        "runtime/worker/plan.py",
        "WEIGHTS: Final = (8, 4, 2, 1)",
        "WEIGHTS: Final = (1, 1, 1, 1)",
        "tests/faults/test_overload.py::test_while_all_four_wait_they_are_served_as_8_to_4_to_2_to_1",
    ),
    Mutant(
        "a connection without a name is good enough",
        "runtime/store/connection.py",
        'if isinstance(answer, ServerError) and answer.code != "NOPERM":',
        "if False:",
        "tests/faults/test_outage.py::test_a_connection_opened_while_the_server_is_busy_is_none",
    ),
    Mutant(
        "a dead letter without the fence",
        "runtime/store/lua/dead.lua",
        "  if not holds(s, id, consumer, count) then return 0 end\n",
        "",
        MODEL,
    ),
    Mutant(
        "a job that somebody deleted is delayed",
        "runtime/store/lua/defer.lua",
        "    if ids[tonumber(ARGV[i])][ARGV[i + 1]] then\n",
        "    if true then\n",
        f"{VERBS}::test_an_entry_deleted_under_our_feet_is_simply_gone",
    ),
    Mutant(
        "a mark that stays behind when its job is delayed",
        "runtime/store/lua/defer.lua",
        "    if ARGV[i + 6] ~= '' then\n",
        "    if false then\n",
        MODEL,
    ),
    Mutant(
        "a lost reply counts as a delivery",
        "runtime/store/lua/reclaim.lua",
        "math.max(0, entry[4] - 1)",
        "entry[4]",
        MODEL,
    ),
    Mutant(
        "two delayed jobs of one id in one place",
        "runtime/store/lua/send.lua",
        "  if redis.call('HEXISTS', MSG, member) == 1 then member = id .. '#' .. ARGV[1] .. '/' .. position end\n",
        "",
        MODEL,
    ),
    Mutant(
        "acknowledged and deleted in two steps",
        "runtime/streams.py",
        '        commands: list[Command] = [("MULTI",)]\n',
        "        commands: list[Command] = []\n",
        CRASH,
    ),
    Mutant(
        "counters that get their end in a second step",
        "runtime/streams.py",
        '[("MULTI",), *counters, ("EXPIRE", key, STATS_LIFE_S), ("EXEC",)]',
        '[*counters, ("EXPIRE", key, STATS_LIFE_S)]',
        CRASH,
    ),
    Mutant(
        "a letter of thousands of fields, field by field",
        "runtime/store/lua/common.lua",
        "  if #fields > 2 * MAX_FIELDS then fields = {'raw', cmsgpack.pack(fields)} end\n",
        "",
        FUZZ,
    ),
    Mutant(
        "a repeat writes nothing before it is confirmed",
        "runtime/store/lua/send.lua",
        "  redis.call('SET', mark, known, 'PX', life_ms)\n",
        "",
        f"{DURABILITY}::test_a_repeat_after_a_lost_reply_is_not_confirmed_by_a_replica_that_lacks_it",
    ),
    Mutant(
        "the number that WAIT answers is not compared",
        "runtime/store/sends.py",
        "        if found >= wanted:",
        "        if True:",
        f"{DURABILITY}::test_a_frozen_replica_is_an_error_in_time_and_a_repeat_with_the_key_makes_no_second_job",
    ),
    Mutant(
        "the confirmation is asked for over another connection",
        "runtime/store/sends.py",
        "await self._connection.call(confirmation,",
        'await Connection(self.url, "another").call(confirmation,',
        f"{DURABILITY}::test_a_frozen_replica_is_an_error_in_time_and_a_repeat_with_the_key_makes_no_second_job",
    ),
    Mutant(
        "whatever the sentinels name is taken for the master",
        "runtime/store/connection.py",
        '        if role != "master":',
        "        if False:",
        f"{SENTINEL}::test_a_replica_that_a_sentinel_takes_for_the_master_is_not_talked_to",
    ),
    Mutant(
        "a connection to a server that became a replica is kept",
        "runtime/store/connection.py",
        'answer.code == "READONLY" for',
        "False for",
        f"{SENTINEL}::test_a_replica_that_a_sentinel_takes_for_the_master_is_not_talked_to",
    ),
    Mutant(
        "a lane goes on in whatever context its job has left",
        "runtime/worker/lanes.py",
        "is_as_first = copy_context() == first",
        "is_as_first = True",
        f"{LANES}::test_a_context_variable_that_a_job_sets_is_not_seen_by_the_next",
    ),
    Mutant(
        "a lane that goes on keeps the context",
        "runtime/worker/lanes.py",
        "origin.copy())",
        "copy_context())",
        f"{LANES}::test_a_context_variable_that_a_job_sets_is_not_seen_by_the_next",
    ),
    Mutant(
        "a decimal context is shared by all jobs",
        "runtime/worker/lanes.py",
        "        decimal.setcontext(self._own)\n",
        "",
        f"{LANES}::test_the_settings_of_decimals_are_each_job_s_own",
    ),
    Mutant(
        "a cancel that a job has left behind hits the next one",
        "runtime/worker/lanes.py",
        "or self.is_disturbed or task.cancelling() or",
        "or self.is_disturbed or",
        f"{LANES}::test_what_a_handler_did_by_itself_is_told_and_a_late_cut_touches_nothing",
    ),
    Mutant(
        "a stop is no more than a cancel",
        "runtime/worker/lanes.py",
        "self.is_stopped = self.is_disturbed = True",
        "pass",
        f"{LANES}::test_a_stop_ends_the_lane_which_keeps_its_job_to_be_released",
    ),
    Mutant(
        "what a handler raised is read without a guard",
        "runtime/settle.py",
        "    except BaseException as second:\n        return _fail(handler, job, jitter, error, second)",
        "    except ZeroDivisionError as second:\n        return _fail(handler, job, jitter, error, second)",
        f"{SETTLE}::test_a_word_that_cannot_be_read_is_a_failure_by_the_policy_with_both_errors_in_its_letter",
    ),
    Mutant(
        "an error is what it claims to be",
        "runtime/settle.py",
        "    return issubclass(type(error), kind)\n",
        "    return isinstance(error, kind)\n",
        f"{SETTLE}::test_an_error_is_what_its_type_says_whatever_class_it_claims",
    ),
    Mutant(
        "a handler may say that it has not started",
        "runtime/worker/lanes.py",
        'if is_turned_away and module_of(raised).startswith("runtime."):',
        "if is_turned_away:",
        f"{LANES}::test_a_handler_that_raises_the_runtime_s_own_word_has_failed",
    ),
    Mutant(
        "what was raised keeps its stack",
        "runtime/worker/lanes.py",
        "                self.forget(error)\n",
        "",
        f"{LANES}::test_an_error_that_is_raised_again_and_again_keeps_nothing_of_the_jobs_before",
    ),
    Mutant(
        "a lane goes on by the task factory of a handler",
        "runtime/worker/lanes.py",
        "        loop.set_task_factory(None)\n",
        "",
        f"{LANES}::test_a_lane_goes_on_whatever_makes_the_tasks_of_a_handler",
    ),
    Mutant(
        "what stops the loop ends the worker",
        "runtime/commands/run.py",
        "        except BaseException as error:\n            end_fork(here, error)\n            loop =",
        "        except (SystemExit, KeyboardInterrupt) as error:\n            loop =",
        "tests/unit/test_run.py::test_a_loop_that_a_callback_stops_is_run_again",
    ),
    Mutant(
        "what is left behind has a say in the status",
        "runtime/commands/run.py",
        "suppress(BaseException), leaving.bounded(status):\n            runner",
        "suppress(ValueError), leaving.bounded(status):\n            runner",
        f"{STATUS}[a closed stderr, a task that exits]",
    ),
    Mutant(
        "what is left behind keeps the process",
        "runtime/leaving.py",
        "timer = self.end_after(LEFT_S, status, LEFT)",
        "timer = self.end_after(3600, status, LEFT)",
        f"{STATUS}[a stubborn task]",
    ),
    Mutant(
        "a job may silence the worker",
        "runtime/consumer.py",
        "            logs.wake()",
        "            pass",
        "tests/faults/test_crash.py::test_the_worker_goes_on_with_what_a_handler_has_left_in_its_process[another log]",
    ),
    Mutant(
        "what a handler returns is not looked at",
        "runtime/worker/lanes.py",
        "                    await finish(answer)\n",
        "",
        f"{LANES}::test_what_a_handler_returns_is_awaited_to_its_end",
    ),
    Mutant(
        "an answer that gives itself is awaited again",
        "runtime/answers.py",
        "        if given is answer:",
        "        if given is answer is None:",
        f"{LANES}::test_any_other_answer_is_none_of_our_business",
    ),
    Mutant(
        "an answer is asked for more than its type",
        "runtime/answers.py",
        "        return issubclass(type(answer), kinds)",
        "        return isinstance(answer, kinds)",
        f"{LANES}::test_any_other_answer_is_none_of_our_business",
    ),
    Mutant(
        "what a handler forks lives on",
        "runtime/offload.py",
        "    if os.getpid() != here:",
        "    if os.getpid() == -here:",
        f"{OFFLOAD}::test_what_a_handler_forks_in_its_child_answers_nothing",
    ),
    Mutant(
        "what a handler forks on the loop is a second worker",
        "runtime/worker/forks.py",
        "    for owner, names in steps:",
        "    for owner, names in steps[:0]:",
        FORKS,
    ),
    Mutant(
        "what a handler forks hears signals as the worker does",
        "runtime/worker/forks.py",
        "zip(_OURS, (signal.SIG_DFL, signal.default_int_handler), strict=True)",
        "()",
        FORKS,
    ),
    Mutant(
        "a child is believed whatever it answers",
        "runtime/offload.py",
        '"done") if answered == number:',
        '"done"):',
        f"{OFFLOAD}::test_a_shifted_answer_is_not_believed",
    ),
    Mutant(
        "jobs of a child share one context",
        "runtime/offload.py",
        "        copy_context().run(_run_alone, handler, job, here)",
        "        _run_alone(handler, job, here)",
        f"{OFFLOAD}::test_what_a_job_sets_in_its_child_is_not_seen_by_the_next",
    ),
    Mutant(
        "a lot that gave all is asked for without end",
        "runtime/worker/fetcher.py",
        "            self._are_lots_full = False  # the last one",
        "            pass  # the last one",
        "tests/unit/test_fetcher.py::test_a_fetcher_waits_again_when_a_lot_that_gave_all_is_gone_at_the_next_look",
    ),
    Mutant(
        "a turn of the loop takes as long as its jobs",
        "runtime/worker/lanes.py",
        "            self._turn = 0\n            return False",
        "            return True",
        f"{LANES}::test_handlers_that_block_let_the_loop_breathe_after_a_while",
    ),
    Mutant(
        "a tick of before the start counts",
        "runtime/cron.py",
        "            if at_s > start_s:",
        "            if at_s:",
        f"{CRON}::test_started_in_an_hour_that_comes_twice_no_tick_lies_before_the_start",
    ),
    Mutant(
        "cronsim is trusted where clocks change by half an hour",
        "runtime/cron.py",
        "self._as_in_debian if self._is_as_in_debian else self._by_the_wall",
        "self._as_in_debian",
        f"{CRON}::test_where_the_clock_changes_by_half_an_hour_no_tick_is_lost",
    ),
    Mutant(
        "a tick that falls on a change of the clock is left out",
        "runtime/cron.py",
        "start_s = end_s - 1",
        "start_s = end_s",
        f"{CRON}::test_a_year_of_ticks_is_that_of_the_oracle",
    ),
    Mutant(
        "a late tick fires beside a newer one",
        "runtime/schedules.py",
        '"latest": 0 if ticks else 1',
        '"latest": 1',
        f"{SCHEDULES}::test_what_is_on_time_fires_and_what_is_late_as_the_policy_says",
    ),
    Mutant(
        "a tick that was decided fires again",
        "runtime/schedules.py",
        "edge = max(last, now - ON_TIME_MS - 1)",
        "edge = now - ON_TIME_MS - 1",
        f"{SCHEDULES}::test_however_often_it_is_asked_each_tick_is_decided_once",
    ),
    Mutant(
        "what cannot be read in Redis runs as the code says",
        "runtime/schedules.py",
        "            found.pop(name, None)\n",
        "",
        f"{SCHEDULES}::test_what_cannot_be_read_is_told_and_does_not_run_and_the_others_go_on",
    ),
    Mutant(
        "a tick fires for each worker that asks",
        "runtime/store/lua/tick.lua",
        "if ask.expected ~= ms(row.last) then return 'moved', 0, 0 end",
        "",
        f"{VERBS}::test_who_comes_second_hears_that_it_was_done_and_by_when",
    ),
    Mutant(
        "an edit is not read where nobody tells of it",
        "runtime/worker/ticker.py",
        "                self._must_read = True\n            case refusal",
        "            case refusal",
        f"{TICKER}::test_an_edit_of_which_nobody_told_it_is_read_before_it_fires_again",
    ),
    Mutant(
        "a tick fires before its time",
        "runtime/store/lua/tick.lua",
        "ask.last > now or ",
        "",
        f"{VERBS}::test_nobody_fires_before_the_servers_time",
    ),
    Mutant(
        "who has slept takes for on time what is late",
        "runtime/store/lua/tick.lua",
        " or now - ARGV[2] > OFF_MS",
        "",
        f"{VERBS}::test_what_was_worked_out_for_a_time_long_ago_is_worked_out_again",
    ),
    Mutant(
        "a definition of before takes over from one that lives",
        "runtime/store/lua/tick.lua",
        "if #rest < #row.former and now - row.alive < STALE_MS then return 'other' end",
        "",
        f"{VERBS}::test_a_new_definition_rules_at_once_and_what_ruled_before_takes_nothing_back",
    ),
    Mutant(
        "a new definition fires what was due before it",
        "runtime/store/lua/tick.lua",
        "if is_new then row.last = math.max(row.last, row.alive) end",
        "",
        f"{VERBS}::test_a_new_definition_rules_at_once_and_what_ruled_before_takes_nothing_back",
    ),
    Mutant(
        "two people overwrite each other's schedules",
        "runtime/store/lua/control.lua",
        "if revision ~= expected then moved = field end",
        "",
        "tests/contract/test_schedules.py::test_what_was_changed_meanwhile_is_not_overwritten",
    ),
    Mutant(
        "a change of a schedule makes a past tick due",
        "runtime/store/lua/control.lua",
        "if last and #last < 16 and tonumber(last) < now then",
        "if false then",
        "tests/contract/test_schedules.py::test_of_a_schedule_that_changes_no_tick_of_before_is_due",
    ),
    Mutant(
        "payloads go to the audit",
        "runtime/store/lua/control.lua",
        "if OF_SCHEDULES[verb] then value = string.match(value, '^%d+ (%S+)') or '' end",
        "",
        "tests/contract/test_schedules.py::test_no_payload_goes_to_the_audit",
    ),
    Mutant(
        "an edit is not waited for",
        "runtime/store/lua/tick.lua",
        "if ask.revision ~= (string.match(stored or '', '^%d+') or '0') then",
        "if false then",
        f"{VERBS}::test_where_another_revision_is_stored_nothing_fires",
    ),
    Mutant(
        "after a clock that went back nothing fires until it is where it was",
        "runtime/store/lua/tick.lua",
        "if is_ahead then row.last = now end",
        "",
        f"{VERBS}::test_where_the_clock_went_back_the_last_time_is_set_back_and_told",
    ),
    Mutant(
        "ticks fire though memory is full",
        "runtime/store/lua/tick.lua",
        "#!lua\n",
        "#!lua flags=allow-oom\n",
        "tests/contract/test_streams.py::test_a_tick_is_refused_when_memory_is_full_and_nothing_was_decided",
    ),
    Mutant(
        "a schedule that cannot be stored stops the others",
        "runtime/store/lua/tick.lua",
        "local ok, word, last, fired, skipped = pcall(tick, ask)",
        "local ok, word, last, fired, skipped = true, tick(ask)",
        "tests/contract/test_streams.py::test_a_schedule_that_cannot_be_stored_says_why_and_the_others_fire",
    ),
    Mutant(
        "order: a repeated pause is a new one",
        "runtime/store/lua/control.lua",
        "return (is_open or is_repeat) and rest",
        "return is_open and rest",
        f"{RULES}::test_an_order_repeated_after_a_lost_reply_changes_nothing_more",
    ),
    Mutant(
        "order: a later pause shortens a longer one",
        "runtime/store/lua/control.lua",
        "(ends and for_ms > 0 and ends >= now + for_ms)",
        "false",
        f"{RULES}::test_a_later_pause_leaves_one_that_lasts_longer",
    ),
    Mutant(
        "order: jobs that go on pausing fill the audit",
        "runtime/store/lua/control.lua",
        "is_told = is_told or not is_extension",
        "is_told = true",
        f"{RULES}::test_jobs_that_only_go_on_pausing_their_type_do_not_fill_the_audit",
    ),
    Mutant(
        "order: one bad operation does not stop the others",
        "runtime/store/lua/control.lua",
        "    if trouble then return 'BADORDER ' .. trouble end\n",
        "",
        f"{RULES}::test_an_order_with_one_bad_operation_changes_nothing",
    ),
    Mutant(
        "order: as many rules as anybody likes",
        "runtime/store/lua/control.lua",
        "if hash.grown > 0 and",
        "if false and",
        f"{RULES}::test_there_are_at_most_2000_rules",
    ),
    Mutant(
        "order: full memory refuses a pause",
        "runtime/store/lua/control.lua",
        "#!lua flags=allow-oom\n",
        "#!lua\n",
        f"{RULES}::test_rules_change_with_memory_full",
    ),
    Mutant(
        "order: what changes is told to nobody",
        "runtime/store/lua/control.lua",
        "redis.call('HSET', CONTROL, 'v', v_now)\n",
        "",
        f"{ORDERS}::test_a_paused_priority_starts_nothing_and_the_others_go_on",
    ),
    Mutant(
        "order: limits replace one another",
        "runtime/store/lua/control.lua",
        "ipairs({value_of(field) or '{}', value})",
        "ipairs({value})",
        f"{RULES}::test_limits_are_merged_member_by_member",
    ),
    Mutant(
        "order: a forgotten worker leaves its order",
        "runtime/store/lua/forget.lua",
        "  redis.pcall('HDEL', CONTROL, 'worker:' .. consumer)\n",
        "",
        f"{RULES}::test_a_worker_that_is_forgotten_takes_its_order_along",
    ),
    Mutant(
        "order: rules are read after the first fetch only",
        "runtime/consumer.py",
        "        await self.orders.begin()\n",
        "",
        f"{ORDERS}::test_the_rules_are_read_before_the_first_fetch",
    ),
    Mutant(
        "order: rules are read where v is greater",
        "runtime/worker/orders.py",
        "looked.version != self.rules.version or",
        "looked.version > self.rules.version or",
        f"{ORDERS}::test_rules_of_a_restored_server_hold_though_it_counts_lower",
    ),
    Mutant(
        "order: rules are read only where v differs",
        "runtime/worker/orders.py",
        " or time.monotonic() >= self._reread_s:",
        ":",
        f"{ORDERS}::test_rules_that_were_changed_by_hand_hold_after_a_while",
    ),
    Mutant(
        "order: a pause ends by the clock of the worker",
        "runtime/worker/orders.py",
        "return time.monotonic() * 1000 + self._server_ahead_ms",
        "return time.time() * 1000",
        f"{ORDERS}::test_a_pause_ends_by_the_servers_clock",
    ),
    Mutant(
        "order: rules that cannot be read are none",
        "runtime/worker/orders.py",
        "        self._failures += 1\n",
        "        self._failures += 1\n        self.rules = NO_RULES\n",
        f"{ORDERS}::test_rules_read_last_hold_where_the_key_becomes_one_of_another_type",
    ),
    Mutant(
        "order: an unreadable rule is told at each look",
        "runtime/worker/orders.py",
        "unreadable - self._told",
        "unreadable",
        f"{ORDERS}::test_what_cannot_be_read_is_told_once_and_the_rest_is_obeyed",
    ),
    Mutant(
        "order: what waits here is not given back",
        "runtime/consumer.py",
        " or job.stream in paused]",
        "]",
        f"{ORDERS}::test_what_waits_here_when_its_priority_is_paused_is_given_back",
    ),
    Mutant(
        "order: a suspect of a paused priority is isolated",
        "runtime/store/lua/isolate.lua",
        " and not string.find(paused, s, 1, true) then",
        " then",
        f"{ORDERS}::test_a_suspect_of_a_paused_priority_is_not_isolated",
    ),
    Mutant(
        "order: a quiet worker goes on",
        "runtime/worker/orders.py",
        "return ALL_STREAMS if self.mine else",
        "return",
        f"{ORDERS}::test_a_quiet_worker_starts_nothing_finishes_what_runs_and_says_so",
    ),
    Mutant(
        "order: a quiet worker isolates",
        "runtime/worker/isolation.py",
        "        if len(self._paused) == len(STREAMS):\n",
        "        if False:\n",
        "tests/unit/test_isolation.py::test_where_all_is_paused_nothing_is_asked_for_and_the_place_is_left",
    ),
    Mutant(
        "order: a stopped worker is replaced",
        "runtime/supervisor.py",
        "        slot.was_ordered = child.is_ordered\n",
        "",
        "tests/faults/test_supervisor.py::test_one_that_is_ordered_to_stop_is_not_replaced_and_with_the_last_one_all_is_over",
    ),
    Mutant(
        "order: a supervisor without children goes on",
        "runtime/supervisor.py",
        "        if not self.slots:\n            self.stop()\n",
        "",
        "tests/faults/test_supervisor.py::test_one_that_is_ordered_to_stop_is_not_replaced_and_with_the_last_one_all_is_over",
    ),
    Mutant(
        "order: a beginning of several workers is the first of them",
        "runtime/control.py",
        "    if len(found) > 1:\n",
        "    if False:\n",
        f"{ORDERING}::test_a_worker_that_does_not_live_is_refused_with_those_that_do",
    ),
    Mutant(
        "order: dead workers can be ordered",
        "runtime/control.py",
        "            if until_ms > now_ms\n",
        "",
        f"{ORDERING}::test_a_worker_that_does_not_live_is_refused_with_those_that_do",
    ),
)


def is_killed(mutant: Mutant, folder: Path) -> tuple[bool, str]:
    """Apply a mutant to a fresh copy and run its test; say whether the test turned red."""
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    ignored = shutil.ignore_patterns(".git", ".venv*", ".run", "__pycache__", ".hypothesis", ".envs", "node_modules")
    shutil.copytree(ROOT, tree, ignore=ignored)
    path = tree / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        return False, "can no longer be applied"
    path.write_text(text.replace(mutant.old, mutant.new))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.test]
    environment = {**os.environ, "PYTHONPATH": str(tree), "TESTS_PATIENCE_S": PATIENCE_S}
    try:
        result = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=HANGS_S, check=False)
    except subprocess.TimeoutExpired:
        return False, f"its test had no end within {HANGS_S} s"
    if result.returncode == 1:
        return True, ""
    return False, "survived" if result.returncode == 0 else result.stdout[-400:] + result.stderr[-400:]


def main() -> int:
    """Run all mutants, or those whose name holds a word that is given; status 1 when one of them lives."""
    words = sys.argv[1:]
    mutants = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    killed = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for mutant in mutants:
            began_s = time.monotonic()
            is_dead, why = is_killed(mutant, Path(folder))
            killed += is_dead
            word = "killed" if is_dead else f"LIVES ({why})"
            print(f"{word:8} {mutant.name:50} by {mutant.test.split('::')[1]} in {time.monotonic() - began_s:.1f} s", flush=True)
    print(f"{killed} of {len(mutants)} mutants killed")
    return 0 if killed == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
