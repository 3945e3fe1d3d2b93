"""The house: who imports whom, which modules do no I/O, where errors are caught, what is public. Sizes are shown, not judged."""

from __future__ import annotations

import ast
import gc
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from runtime.codec import DEAD_FIELDS, NOTED_FIELDS, SENT_FIELDS
from runtime.store import base

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "runtime"
FIRST_PARTY = ("runtime", "handlers", "board", "otel")

# --- the tables --------------------------------------------------------------------------------------------------------------

# The floors of runtime/, the lowest first: names of modules, or of a folder for all that is in it. A module imports from its own
# floor and from lower ones.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "backoff", "findings", "limits", "said", "tries", "ended", "jobs", "stats", "observer"),  # words
    ("logs", "folders", "leaving", "rubbish", "process"),  # the process around them
    ("config", "bounds", "codec", "packing", "settle", "schema", "rules", "cron", "schedules", "operations", "results"),  # pure
    (
        "declared",
        "hooks",
        "answers",
        "channel",
        "batches",
        "followers",
        "places",
        "lifespans",
        "frames",
        "child",
        "children",
        "serving",
        "offload",
        "registry",
        "checks",
    ),  # users' code, and where it runs
    ("store",),
    ("streams", "sender", "waiter", "producer", "portal", "sync_producer", "operating", "steering", "control"),
    ("worker",),
    ("consumer", "embedded", "supervisor"),
)
# Stricter than its floor, and why.
STRICT: dict[str, tuple[set[str], str]] = {
    "worker.lanes": (
        {"errors", "limits", "jobs", "stats", "tries", "observer", "answers", "batches", "settle"}
        | {"worker.ledger", "worker.gathering"},
        "the hot path is tested and measured without Redis",
    ),
    "supervisor": ({"errors", "backoff", "config", "folders", "logs", "leaving"}, "knows no job"),
    "store": (
        {"errors", "findings", "limits", "jobs", "said", "tries", "ended", "backoff", "codec", "rules", "schema", "schedules"}
        | {"operations", "results", "store"},
        "serves producers too, which load no handler",
    ),
    "sender": ({"errors", "limits", "jobs", "backoff", "codec", "store"}, "a web service that only enqueues loads no worker"),
    "control": (
        {"errors", "limits", "jobs", "rules", "store", "codec", "cron", "schedules"}
        | {"sender", "producer", "packing", "operating", "steering"},
        "a service that orders loads no worker",
    ),
    "portal": ({"errors"}, "runs coroutines, whatever they do"),
    "sync_producer": (
        {"errors", "limits", "jobs", "observer", "backoff", "codec", "packing", "results", "store", "sender", "waiter"}
        | {"producer", "portal"},
        "the same",
    ),
    "waiter": ({"errors", "jobs", "backoff", "results", "store"}, "the same"),
    "producer": (
        {"errors", "limits", "jobs", "observer", "backoff", "codec", "packing", "results", "store", "sender", "waiter"},
        "the same",
    ),
}
# What stands at the edge may import every module; what `__init__` names, it loads when it is first used.
EDGE = re.compile(r"runtime\.(cli\w*|__main__|__init__|commands(\..*)?|testing|sent|fake|pytest_plugin)")

# Modules that may import others inside of their functions, and why.
LOADED_LATE = {
    "handlers/ml.py": "loads scikit-learn only in child processes",
    "runtime/commands/run.py": "loads the board, and with it aiohttp, only when it is on; the same of traces and their SDK",
    "runtime/commands/board.py": "loads the board, and with it aiohttp, only to serve it, so that its flags are known without it",
    "runtime/child.py": "finds modules only when its worker has said where they are",
    "otel/child.py": "loads OpenTelemetry's SDK only in a child process that records something",
    "runtime/commands/top.py": "loads rich only to draw, so that its flags are known without it",
    "handlers/kit/databases.py": "loads asyncpg, of an extra, only for a PostgreSQL database",
    "handlers/inference.py": "loads scikit-learn and onnxruntime only in its child processes",
    "runtime/pytest_plugin.py": "costs nothing in test suites that do not use it",
}

LOADED_BY_NAME = {
    "runtime/__init__.py": "loads its names when they are first used",
    "runtime/cli.py": "loads only the command that was asked for",
    "runtime/observer.py": "loads what makes a producer's spans where the application traces",
}

PURE = (
    *("errors", "said", "tries", "ended", "jobs", "stats", "config", "bounds", "codec", "backoff", "worker/plan", "settle"),
    *("schema", "limits", "rules", "cron", "schedules", "packing", "operations", "results"),
)
IMPURE = {"asyncio", "anyio", "threading", "subprocess", "socket", "time", "datetime", "random"}  # clock and jitter are arguments
# Times and waits as people give them, and cronsim takes and yields; nobody asks for the time.
SHAPES = {name: {"datetime"} for name in ("cron", "errors", "jobs", "packing", "settle")}
ASKS_THE_TIME = {"now", "utcnow", "today"}

# The one place on a job's path; the thread's and the child's side of the same; and start-up, where a module may do anything when
# it is imported.
CATCHES_CANCELS = {
    "runtime/worker/lanes.py",
    "runtime/settle.py",
    "runtime/batches.py:reading",
    "runtime/offload.py:work",
    "runtime/serving.py:_run_declared",
    "runtime/serving.py:_prepared",
    "runtime/worker/hooks.py:_tell",
    "runtime/worker/hooks.py:_answer",
    "runtime/worker/hooks.py:_call",
    "runtime/lifespans.py:_live",
    "runtime/lifespans.py:_last",
    "runtime/logs.py:log",
}
CATCHES_ALL = {"runtime/worker/lanes.py", "runtime/offload.py", "runtime/registry.py", "runtime/checks.py"}

PARTS_OF_CONTRACTS = tuple(f"handlers.contracts.{name}" for name in ("types", "sources", "windows", "deliveries"))

SPEAKS_REDIS = ("runtime.store", "runtime.streams")
RAW = ("runtime.commands.bench",)  # measures what Redis does without us
# Words that hardly anybody writes in capitals for another reason.
COMMANDS = re.compile(
    r"X(ADD|ACK|DEL|LEN|TRIM|READ|READGROUP|RANGE|REVRANGE|PENDING|CLAIM|AUTOCLAIM|GROUP|INFO)"
    r"|Z(ADD|REM|SCORE|RANGE|RANGEBYSCORE|CARD|COUNT)|H(SET|GET|GETALL|DEL|LEN|SCAN|INCRBY|EXISTS|MGET)"
    r"|P?(EXPIRE|TTL)|INCR(BY)?|SET|GET|DEL|UNLINK|EXISTS|SCAN|KEYS|FLUSH(ALL|DB)|DBSIZE|PUBLISH|SUBSCRIBE|S(ADD|REM|MEMBERS)"
    r"|PING|AUTH|HELLO|SELECT|CLIENT|CONFIG|INFO|TIME|WAIT|WAITAOF|SCRIPT|EVAL(SHA)?|FCALL|MULTI|EXEC|DISCARD|WATCH"
)

# Names of fields, which the codec alone knows: as bytes all of them, as text those that nobody writes for another reason.
FIELD_NAMES = {*SENT_FIELDS, *NOTED_FIELDS, *DEAD_FIELDS} - {b"e"}  # numbers have that one, too
FIELD_TEXTS = {name.decode() for name in (*NOTED_FIELDS, *DEAD_FIELDS) if len(name) > 1} | {"src"}

HEAVY = ("redis", "aiohttp", "opentelemetry", "uvloop")


# --- reading the tree ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _trees() -> None:
    """Read all files before the first test, and take them out of the collector's sight: it would look at them after each."""
    for path in modules(*FIRST_PARTY):
        imports(path)
    gc.freeze()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def modules(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    """Return the dotted name of a module; a package's own file keeps `__init__`."""
    return short(path).removesuffix(".py").replace("/", ".")


@cache
def is_module(dotted: str) -> bool:
    base = ROOT / dotted.replace(".", "/")
    return base.with_suffix(".py").exists() or (base / "__init__.py").exists() or base.is_dir()


def imported_by(node: ast.AST, importer: str) -> list[str]:
    """Return the modules that an import statement loads, dotted; `from runtime import offload` is `runtime.offload`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = importer.split(".")[: -node.level]
            base = ".".join([*package, base]).rstrip(".")
        inner = [f"{base}.{alias.name}" for alias in node.names]
        return [name if name.startswith(FIRST_PARTY) and is_module(name) else base for name in inner]
    return []


@cache
def imports(path: Path) -> list[tuple[int, str]]:
    """Return line and name of each module that a file imports, wherever the statement stands."""
    nodes = (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Import | ast.ImportFrom))
    return [(node.lineno, name) for node in nodes for name in imported_by(node, name_of(path))]


def first_party(path: Path) -> Iterator[tuple[int, str]]:
    return ((line, name) for line, name in imports(path) if name.split(".")[0] in FIRST_PARTY)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def may_import(importer: str, imported: str) -> bool:
    """Return whether the table lets one module import the other; names are dotted, `runtime` alone is its public names."""
    package = importer.split(".")[0]
    match package:
        case "runtime":
            return may_import_inside(importer, imported)
        case "board":
            # What people read and order: words, what is pure, the store, and what orders; never a worker's path but its Consumer.
            allowed = (
                *(
                    "runtime.errors",
                    "runtime.findings",
                    "runtime.jobs",
                    "runtime.stats",
                    "runtime.said",
                    "runtime.tries",
                    "runtime.logs",
                    "runtime.folders",
                ),
                *("runtime.config", "runtime.codec", "runtime.limits", "runtime.rules", "runtime.cron", "runtime.schedules"),
                *("runtime.bounds", "runtime.ended", "runtime.results", "runtime.steering", "runtime.operating"),
                *(
                    "runtime.operations",
                    "runtime.settle",
                    "runtime.schema",
                    "runtime.store",
                    "runtime.control",
                    "runtime.producer",
                ),
                *("runtime.sender", "runtime.consumer", "runtime.supervisor", "runtime.worker.log", "otel", "board"),
            )
            return imported == "runtime" or is_under(imported, allowed)
        case "otel":
            allowed = (
                *("runtime.errors", "runtime.backoff", "runtime.jobs", "runtime.stats", "runtime.logs", "runtime.folders"),
                *("runtime.codec", "runtime.config", "runtime.observer", "runtime.settle", "runtime.store.base"),
                *("runtime.store.flow", "runtime.store.inspector", "otel"),
            )
            return imported == "runtime" or is_under(imported, allowed)
        case _ if importer.startswith("handlers.demo") and imported.startswith("handlers.demo_"):
            return True
        case _ if importer.startswith("handlers.contracts"):
            return imported == "runtime" or imported in PARTS_OF_CONTRACTS
        case _:
            return imported == "runtime" or is_under(imported, ("handlers.contracts", "handlers.kit"))


def floor_of(inside: str) -> int:
    """Return the floor of a module, by its name inside of `runtime`; -1 where it has none."""
    return next((at for at, names in enumerate(FLOORS) if is_under(inside, names)), -1)


def may_import_inside(importer: str, imported: str) -> bool:
    if EDGE.fullmatch(importer):
        return not imported.startswith("handlers")
    if not imported.startswith("runtime."):
        return False
    above, below = importer.removeprefix("runtime."), imported.removeprefix("runtime.")
    allowed = [names for name, (names, _) in STRICT.items() if is_under(above, (name,))]
    return 0 <= floor_of(below) <= floor_of(above) and all(is_under(below, tuple(names)) for names in allowed)


def is_under(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


# --- floors ------------------------------------------------------------------------------------------------------------------


def test_every_module_of_the_runtime_has_its_floor() -> None:
    inside = [name_of(path) for path in modules("runtime") if not EDGE.fullmatch(name_of(path))]
    homeless = [name for name in inside if floor_of(name.removeprefix("runtime.").removesuffix(".__init__")) < 0]
    assert not homeless, f"no floor for {homeless}"


def test_modules_import_only_what_the_table_allows() -> None:
    wrong = [
        f"{short(path)}:{line} imports {name}"
        for path in modules(*FIRST_PARTY)
        for line, name in first_party(path)
        if not may_import(name_of(path), name)
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_imported_in_a_ring() -> None:
    graph = {name_of(path).removesuffix(".__init__"): {name for _, name in first_party(path)} for path in modules(*FIRST_PARTY)}
    graph["runtime"] = set()  # its public names are loaded when they are first used
    left = dict(graph)
    while left:
        floor = {name for name, names in left.items() if not names & (set(left) - {name})}
        assert floor, f"these import each other in a ring: {sorted(left)}"
        left = {name: names for name, names in left.items() if name not in floor}


def test_no_module_is_imported_inside_of_a_function() -> None:
    wrong: set[str] = set()
    for path in modules(*FIRST_PARTY):
        if short(path) in LOADED_LATE:
            continue
        statements = (node for function in functions(tree_of(path)) for node in ast.walk(function))
        for node in (node for node in statements if isinstance(node, ast.Import | ast.ImportFrom)):
            names = [name for name in imported_by(node, name_of(path)) if name.split(".")[0] in FIRST_PARTY]
            wrong |= {f"{short(path)}:{node.lineno} imports {name}" for name in names}
    assert not wrong, "\n".join(sorted(wrong))


def test_no_module_is_imported_by_a_name_in_a_text() -> None:
    """Those in the table do; handlers are found by names from the settings."""
    wrong = []
    for path in modules(*FIRST_PARTY):
        if short(path) in LOADED_BY_NAME:
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
                text = ast.unparse(node.args[0]).lstrip("f\"'") if node.args else ""
                if text.startswith(tuple(f"{package}." for package in FIRST_PARTY)):
                    wrong.append(f"{short(path)}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


# --- modules without I/O, and who speaks Redis --------------------------------------------------------------------------------


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_awaits_nothing_and_has_no_clock(module: str) -> None:
    path = RUNTIME / f"{module}.py"
    waits = (ast.Await, ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith)
    assert [node.lineno for node in ast.walk(tree_of(path)) if isinstance(node, waits)] == []
    assert [name for _, name in imports(path) if name.split(".")[0] in IMPURE - SHAPES.get(module, set())] == []
    assert [
        node.lineno for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute) and node.attr in ASKS_THE_TIME
    ] == []


def test_only_the_door_imports_redis() -> None:
    wrong = [
        f"{short(path)}:{line}"
        for path in modules(*FIRST_PARTY)
        for line, name in imports(path)
        if name.split(".")[0] in ("redis", "valkey", "hiredis")
        and not is_under(name_of(path), (*SPEAKS_REDIS, "handlers.demo", "handlers.demo_traffic"))
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_door_knows_commands_of_redis() -> None:
    wrong = []
    for path in modules("runtime", "board", "otel"):
        if is_under(name_of(path), (*SPEAKS_REDIS, *RAW)):
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
                text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
                is_http = text == "GET" and is_under(name_of(path), ("board",))
                if COMMANDS.fullmatch(text) and not is_http:
                    wrong.append(f"{short(path)}:{node.lineno} {text}")
    assert not wrong, "\n".join(wrong)


def test_only_the_codec_knows_the_names_of_fields() -> None:
    wrong = [
        f"{short(path)}:{node.lineno} {node.value!r}"
        for path in modules("runtime", "board", "otel")
        if path != RUNTIME / "codec.py"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and node.value in FIELD_NAMES | FIELD_TEXTS
    ]
    assert not wrong, "\n".join(wrong)


# --- shared state --------------------------------------------------------------------------------------------------------------

FIXED = {"self.keys.streams"}  # a tuple, made once
VIEWS = {"items", "keys", "values"}
READS_AS_IT_GOES = {
    "enumerate",
    "reversed",
    "zip",
    "map",
    "filter",
    "iter",
    "chain",
    "islice",
}  # they read what they are given as they go


def is_shared(node: ast.expr, aliases: set[str]) -> bool:
    """Return whether this is what an object keeps, or a view of it, and no copy: `self.lots`, `self.ctx.lots.items()`, …"""
    match node:
        case ast.Name():
            return node.id in aliases
        case ast.Attribute():
            return ast.unparse(node) not in FIXED and (_belongs_to_self(node) or is_shared(node.value, aliases))
        case ast.Subscript() | ast.Starred() | ast.NamedExpr():
            return is_shared(node.value, aliases)
        case ast.BoolOp():
            return any(is_shared(value, aliases) for value in node.values)
        case ast.IfExp():
            return is_shared(node.body, aliases) or is_shared(node.orelse, aliases)
        case ast.GeneratorExp():
            return any(is_shared(part.iter, aliases) for part in node.generators)
        case ast.Call(func=ast.Attribute(attr=name, value=value)) if name in VIEWS:
            return is_shared(value, aliases)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in READS_AS_IT_GOES:
            return any(is_shared(argument, aliases) for argument in node.args)
        case _:
            return False


def _belongs_to_self(node: ast.expr) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def waits(*parts: ast.AST) -> bool:
    """Return whether this code gives others a turn; that of a function defined in it runs elsewhere."""
    left = list(parts)
    while left:
        node = left.pop()
        if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith):
            return True
        if isinstance(node, ast.comprehension) and node.is_async:
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            left += ast.iter_child_nodes(node)
    return False


def loops_that_wait_in_shared_state(tree: ast.AST) -> list[int]:
    """Return the lines of loops over what an object keeps, with an await inside: others may change it meanwhile."""
    wrong: set[int] = set()
    for function in functions(tree):
        aliases: set[str] = set()
        for node in ast.walk(function):  # a second name for it is no copy
            match node:
                case ast.Assign(targets=targets, value=value) if is_shared(value, aliases):
                    aliases |= {target.id for target in targets if isinstance(target, ast.Name)}
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value) if is_shared(value, aliases):
                    aliases.add(name)
                case ast.NamedExpr(target=ast.Name(id=name), value=value) if is_shared(value, aliases):
                    aliases.add(name)
                case _:
                    pass
        for node in ast.walk(function):
            match node:
                case ast.For() if is_shared(node.iter, aliases) and waits(*node.body):
                    wrong.add(node.lineno)
                case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                    first, *others = node.generators
                    made = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
                    if any(is_shared(part.iter, aliases) for part in node.generators) and waits(*made, *first.ifs, *others):
                        wrong.add(node.lineno)
                case _:
                    pass
    return sorted(wrong)


def test_no_loop_over_shared_state_waits() -> None:
    """What an object keeps may change in each await: the loop then raises, or passes something over.

    `list(…)` is a copy, and right where it does no harm that one acts on what was there a moment ago.
    """
    wrong = [f"{short(path)}:{line}" for path in modules(*FIRST_PARTY) for line in loops_that_wait_in_shared_state(tree_of(path))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("is_refused", "code"),
    [
        (True, "for lot in self.lots: await look(lot)"),
        (True, "for at, lot in enumerate(self.ctx.lots.items()):\n        if lot: await look(lot)"),
        (True, "for lot in self.lots[stream].values():\n        async with lock: look(lot)"),
        (True, "for lot in self.lots:\n        [x async for x in look(lot)]"),
        (True, "for lot in (at for at in self.lots if at):\n        if lot and await look(lot): pass"),
        (True, "return [await look(lot) for lot in self.lots]"),
        (True, "return {stream: await look(lot) for stream, lot in self.lots.items()}"),
        (True, "lots = self.lots\n    for lot in lots: await look(lot)"),
        (True, "for lot in self.lots or ():\n        await look(lot)"),
        (False, "async for line in self.reader: await hear(line)"),  # it is asked for each, and knows what is next
        (False, "for lot in list(self.lots): await look(lot)"),
        (False, "for lot in sorted(self.lots): await look(lot)"),
        (False, "for lot in self.lots: look(lot)"),
        (False, "for lot in await self.look(): look(lot)"),
        (False, "for lot in self.open_lots(): await look(lot)"),
        (False, "for lot in self.lots:\n        async def later(): await look(lot)"),
        (False, "return [look(lot) for lot in self.lots]"),
        (False, "return [await look(lot) for lot in list(self.lots)]"),
    ],
)
def test_the_rule_of_loops_that_wait_tells_the_two_apart(is_refused: bool, code: str) -> None:
    tree = ast.parse(f"async def sweep(self):\n    {code}\n")
    assert bool(loops_that_wait_in_shared_state(tree)) == is_refused


# --- errors ------------------------------------------------------------------------------------------------------------------


def catches(path: Path) -> Iterator[tuple[ast.ExceptHandler, set[str]]]:
    """Return each except clause with the names it catches; a bare one catches BaseException."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type] if node.type else []
            yield node, {ast.unparse(kind) for kind in kinds} or {"BaseException"}


def function_of(path: Path, inner: ast.ExceptHandler) -> str:
    """Return the name of the function around a clause."""
    return next((function.name for function in functions(tree_of(path)) if inner in ast.walk(function)), "")


def test_what_a_handler_raises_is_caught_in_one_place() -> None:
    """In the lane, whatever it is: the panics of native libraries are no Exception. The other guards the variables it left."""
    lanes = [names for _, names in catches(RUNTIME / "worker/lanes.py") if names & {"Exception", "BaseException"}]
    assert lanes == [{"BaseException"}, {"BaseException"}]
    everything = {"Exception", "SystemExit"}
    places = [short(path) for path in modules(*FIRST_PARTY) for _, names in catches(path) if names == everything]
    assert set(places) <= CATCHES_ALL
    leaving = [short(path) for path in modules("runtime") for _, names in catches(path) if "SystemExit" in names]
    leaving = [
        place for place in leaving if place != "runtime/commands/run.py"
    ]  # what a task of a handler raises past its handler
    assert leaving == [place for place in places if place.startswith("runtime/")]


UNPACKS_CODE = ("pickle", "marshal", "shelve", "dill", "multiprocessing", "anyio.to_process", "concurrent.futures.process")


def test_nothing_that_another_process_says_is_run_as_code() -> None:
    """A pickle is a program. What passes between our processes is decoded by type: MessagePack and JSON."""
    wrong = [
        f"{short(path)}:{line} imports {name}"
        for path in modules("runtime")
        for line, name in imports(path)
        if is_under(name, UNPACKS_CODE)
    ]
    assert not wrong, "\n".join(wrong)


def test_a_cancel_is_never_swallowed() -> None:
    """Whoever catches everything there is raises it again; only the lane tells its own cuts from a stop.

    Exempt is what runs the user's own code where no cancel can come: to read an exception, to log, or as a whole job in a child.
    """
    wrong = []
    for path in modules(*FIRST_PARTY):
        for clause, names in catches(path):
            if (
                not names & {"BaseException", "CancelledError", "asyncio.CancelledError"}
                or {short(path), f"{short(path)}:{function_of(path, clause)}"} & CATCHES_CANCELS
            ):
                continue
            raised = [node.exc for node in ast.walk(clause) if isinstance(node, ast.Raise)]
            if not any(exc is None or ast.unparse(exc).startswith(("NotStarted(", "NoPlace(")) for exc in raised):
                wrong.append(f"{short(path)}:{clause.lineno}")
    assert not wrong, "\n".join(wrong)


# --- what is public ------------------------------------------------------------------------------------------------------------


def public(node: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Return public classes and functions, and the public methods of public classes; of what is overloaded, what says it all."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and "overload" in map(ast.unparse, child.decorator_list):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from public(child)


def test_everything_public_says_what_it_is() -> None:
    wrong = [short(path) for path in modules("runtime") if tree_of(path).body and not ast.get_docstring(tree_of(path))]
    wrong += [
        f"{short(path)}:{node.lineno} {node.name}"
        for path in modules("runtime")
        for node in public(tree_of(path))
        if not ast.get_docstring(node)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_public_names_are_sorted_and_can_be_imported() -> None:
    runtime = importlib.import_module("runtime")
    names = list(runtime.__all__)
    assert names == sorted(set(names))
    assert all(getattr(runtime, name) is not None for name in names)
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = runtime.Nonsense


def loaded_after(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after it ran some code."""
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def heavy_in(loaded: set[str]) -> list[str]:
    return [name for name in HEAVY if name in loaded]


def test_a_contract_loads_neither_redis_nor_the_worker() -> None:
    loaded = loaded_after("from runtime import Backoff, Dead, Job, Priority, Retry, Schedule, Snooze, contract, handler")
    assert heavy_in(loaded) == []
    assert {"runtime.streams", "runtime.worker.lanes", "runtime.consumer", "runtime.producer"} & loaded == set()


def test_the_contracts_of_the_handlers_load_nothing_heavy() -> None:
    loaded = loaded_after("import runtime, handlers.contracts.email")
    assert heavy_in(loaded) == []
    assert {"runtime.producer", "runtime.registry", "handlers.email"} & loaded == set()


def test_a_producer_does_not_load_the_worker() -> None:
    loaded = loaded_after("from runtime import Producer")
    assert {"runtime.worker.lanes", "runtime.consumer", "runtime.registry", "aiohttp", "uvloop"} & loaded == set()


# --- scripts -----------------------------------------------------------------------------------------------------------------

SCRIPTS = sorted((RUNTIME / "store" / "lua").glob("*.lua"))
SHARED = {"common"}.union(*base._SHARED.values())  # put before the scripts, and no scripts themselves


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_what_it_takes_and_gives(path: Path) -> None:
    text = path.read_text("utf-8")
    head = "\n".join(line for line in text.split("\n\n")[0].splitlines() if line.startswith("--"))
    assert head, "no comment at the top"
    if path.stem in SHARED:
        assert not text.startswith("#!")
    else:
        assert text.startswith("#!lua")
        assert "ARGV: " in head
        assert "Reply: " in head


# --- the whole tree ------------------------------------------------------------------------------------------------------------

NOT_OURS = {"node_modules", "static", "__pycache__", "dist", "build"}
TEXTS = {"", ".py", ".lua", ".md", ".toml", ".ts", ".tsx", ".css", ".html", ".js", ".mjs", ".sh", ".yml", ".yaml", ".json"}


def texts(folder: Path = ROOT) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if path.name not in NOT_OURS and (not path.name.startswith(".") or path.name in (".ci", ".github")):
                yield from texts(path)
        elif path.suffix in TEXTS and not path.name.startswith(".") and not path.is_symlink():
            yield path


def test_nothing_is_left_to_be_done_later() -> None:
    word = re.compile(rb"\b(TO" + rb"DO|FIX" + rb"ME|XX" + rb"X)\b")
    wrong = [
        f"{short(path)}:{number}"
        for path in texts()
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if word.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def lines_of(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function without its docstring."""
    told = function.body[0] if ast.get_docstring(function) else None
    docstring = told.end_lineno - told.lineno + 1 if told is not None and told.end_lineno else 0
    return (function.end_lineno or function.lineno) - function.lineno + 1 - docstring


def test_sizes_are_shown_and_not_judged(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {path: lines_of(path) for path in modules("runtime")}
    largest = sorted(
        ((body_lines(node), f"{short(path)}:{node.name}") for path in sizes for node in functions(tree_of(path))), reverse=True
    )
    scripts = sum(map(lines_of, SCRIPTS))
    with capsys.disabled():
        print(f"\nruntime/: {sum(sizes.values())} lines of Python, {scripts} of Lua")
        print("modules:  ", ", ".join(f"{short(path)[8:]} {size}" for path, size in sorted(sizes.items(), key=lambda at: -at[1])))
        print("functions:", ", ".join(f"{name[8:]} {size}" for size, name in largest[:8]))
    assert sizes
