"""Settle: what becomes of a job after a run."""

from __future__ import annotations

import gc
import json
import pickle
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, cast

import msgspec
import pytest

from runtime.backoff import Backoff
from runtime.errors import (
    BadPayload,
    Cancelled,
    ChildFailed,
    Dead,
    Decision,
    LeaseLost,
    NoPlace,
    NotStarted,
    Retry,
    SelfCancelled,
    Snooze,
    StoreUnavailable,
    TimedOut,
    UnfitPayload,
)
from runtime.jobs import (
    DONE,
    LOST,
    RELEASE,
    Handler,
    Outcome,
    Park,
    contract_of,
)
from runtime.settle import (
    MAX_CAP_S,
    MAX_SNOOZE_MS,
    as_plain_words,
    decide,
    describe,
    frame_of,
    has_word,
    line_of,
    raise_again,
    stack_of,
)
from tests.builders import NOW_MS, job
from tests.unit.outcomes import (
    HANDLER,
    INF,
    NAN,
    SAFE,
    Greet,
    Mute,
    as_dead,
    as_raised,
    as_retry,
    decided,
    greet,
    handler,
    raised,
    written_for,
)

# --- what an attempt remembers -----------------------------------------------------------------------------------------------


def in_file(file: str, error: BaseException) -> BaseException:
    """Return an error that was raised in a function `fail` in line 2 of such a file; nothing else is in its stack."""
    names: dict[str, Any] = {"error": error}
    exec(compile("def fail():\n    raise error\n", file, "exec"), names)
    caught = as_raised(names["fail"])
    step = caught.__traceback__
    assert step is not None
    caught.__traceback__ = step.tb_next  # without that of the helper
    return caught


HERE = "tests/unit/test_settle.py"
LIBRARY = "/opt/lib/python3/site-packages/http/client.py"


def in_child(error: BaseException) -> BaseException:
    """Return what is raised in a worker for what was raised in a child process of it."""
    words = as_plain_words(error)
    return as_raised(lambda: raise_again(*words))


def fail_in_library() -> None:
    raise in_file(LIBRARY, ValueError("no"))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no"), "ValueError: no"),
        (ValueError(), "ValueError"),
        (Dead("no account", "gone"), "Dead: no account"),
        (Retry(5, "slow down"), "Retry: slow down"),
        (TimedOut("ran longer than 3 s"), "TimedOut: ran longer than 3 s"),
        (in_child(ValueError("no")), "ValueError: no"),
        (in_child(Dead("no account")), "Dead: no account"),
        (ExceptionGroup("two", [ValueError("no"), OSError("x")]), "ExceptionGroup: two (2 sub-exceptions): ValueError: no"),
        (Mute(), "Mute: (its message raised RuntimeError)"),
    ],
    ids=range(9),
)
def test_what_an_attempt_failed_of_begins_with_the_class(error: BaseException, line: str) -> None:
    assert line_of(error, as_retry(decided(Retry(5, describe(error))))) == line


def test_of_the_frames_of_an_error_the_newest_of_the_applications_own_code_counts() -> None:
    number = raised.__code__.co_firstlineno + 3
    own = f"tests/unit/outcomes.py:{number} raised"
    assert frame_of(raised(ValueError("no"))) == own
    assert frame_of(raised(Dead("no", error=raised(ValueError("no"))))) == own
    assert frame_of(raised(ExceptionGroup("two", [raised(ValueError("no"))]))) == own
    assert frame_of(in_child(raised(ValueError("no")))) == own
    assert frame_of(in_child(raised(Retry(3)))) == own
    assert frame_of(as_raised(lambda: json.loads("x"))).endswith(" <lambda>"), "of Python itself, none"
    assert frame_of(in_file("/srv/app/shop/mail.py", ValueError("no"))) == "shop/mail.py:2 fail"
    with pytest.raises(ValueError, match="no") as caught:
        fail_in_library()
    line = fail_in_library.__code__.co_firstlineno + 1
    assert frame_of(caught.value) == f"{HERE}:{line} fail_in_library", "what a library raises that own code calls"


def test_where_no_own_code_is_among_the_frames_a_librarys_counts_and_never_the_runtimes() -> None:
    assert frame_of(in_file(LIBRARY, ValueError("no"))) == "http/client.py:2 fail"
    error = as_raised(lambda: raise_again("error", "no", "", ""))
    assert frame_of(error) == "", "of a child that told of no frame"
    error = ValueError("no")
    assert frame_of(error) == ""
    assert frame_of(in_file("<string>", error)) == ""


class Posing(Exception):
    """One whose attributes raise."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("no attribute")


def test_errors_that_cannot_be_read_have_a_frame_or_none() -> None:
    assert frame_of(raised(Posing())).endswith(" raised")
    dead = Dead("no")
    dead.error = 5  # type: ignore[assignment]
    assert frame_of(dead) == ""


# --- decide ----------------------------------------------------------------------------------------------------------------


def as_snooze(outcome: Outcome) -> Snooze:
    assert isinstance(outcome, Snooze)
    return outcome


def test_nothing_raised_is_done() -> None:
    assert decided(None) is DONE


def test_a_lost_lease_leaves_nothing_to_write() -> None:
    assert decided(LeaseLost("another worker holds it")) is LOST
    assert decided(LeaseLost("another worker holds it"), failed=2) is LOST


def test_a_job_that_people_have_cancelled_is_dead_and_burns_no_attempt() -> None:
    for failed in (0, 2, 50):
        word = as_dead(decided(raised(Cancelled("cancelled while it ran")), failed=failed))
        assert (str(word), word.code, word.is_failure, word.stack) == ("cancelled while it ran", "cancelled", False, "")


def test_a_job_that_was_cut_before_it_began_is_given_back_and_burns_no_attempt() -> None:
    assert decided(NotStarted("no thread for it"), attempts=1) is RELEASE


def test_a_job_without_a_place_is_parked_for_whoever_has_one_but_a_suspect_goes_back_to_the_suspects() -> None:
    where = HANDLER.contract.type
    assert decided(NoPlace("no thread"), attempts=1) == Park(f"~t:{where}@1")
    one = job()
    one.count = 2
    assert decide(HANDLER, one, NoPlace("no thread"), lambda: 0.5) is RELEASE


def test_a_handler_that_says_dead_is_taken_at_its_word() -> None:
    word = as_dead(decided(Dead("no such account", code="no-account")))
    assert (str(word), word.code, word.is_failure) == ("no such account", "no-account", True)


@pytest.mark.parametrize(
    ("error", "code"),
    [(UnfitPayload("$.name"), "bad-payload"), (UnfitPayload("deep", "unreadable"), "unreadable")],
)
def test_a_payload_that_cannot_be_read_is_dead_at_once(error: UnfitPayload, code: str) -> None:
    word = as_dead(decided(error))
    assert word.code == code
    assert not word.is_failure
    assert str(error) in str(word)


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(3), StoreUnavailable("no"), SelfCancelled("no"), TimedOut("no"), BadPayload("no")]
)
def test_any_other_error_is_a_failure_and_waits_by_the_policy(error: BaseException) -> None:
    assert as_retry(decided(error)).delay_s == 5
    assert as_retry(decided(error, failed=1)).delay_s == 10
    assert as_retry(decided(error, roll=0.0)).delay_s == 0
    assert str(error) in str(decided(error))


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("no"), "attempts"), (Retry(5), "attempts"), (SystemExit(1), "attempts"), (TimedOut("no"), "timeout")],
)
def test_the_last_attempt_of_the_policy_ends_in_the_dead_letters(error: BaseException, code: str) -> None:
    as_retry(decided(error, failed=1))
    word = as_dead(decided(raised(error), failed=2))
    assert word.code == code
    assert word.is_failure
    assert "in raised" in word.stack
    as_dead(decided(error, failed=50))


def test_a_message_may_ask_for_more_or_fewer_attempts_than_the_policy() -> None:
    error = ValueError("no")
    as_dead(decided(error, attempts=1))
    as_retry(decided(error, attempts=5, failed=3))
    as_dead(decided(error, attempts=5, failed=4))


def test_a_retry_waits_as_long_as_the_handler_says() -> None:
    assert as_retry(decided(Retry(30, "rate limit"))).delay_s == 30
    assert "rate limit" in str(decided(Retry(30, "rate limit")))


def test_a_snooze_waits_as_long_as_the_handler_says_and_burns_no_attempt() -> None:
    word = as_snooze(decided(Snooze(30, "busy"), failed=2, attempts=1))
    assert word.delay_s == 30
    assert "busy" in str(word)


def test_a_job_may_snooze_for_72_hours_in_all() -> None:
    assert MAX_SNOOZE_MS == 72 * 60 * 60 * 1000
    as_snooze(decided(Snooze(1), snoozed_ms=NOW_MS - MAX_SNOOZE_MS))
    word = as_dead(decided(Snooze(1, "still busy"), snoozed_ms=NOW_MS - MAX_SNOOZE_MS - 1))
    assert word.code == "gave-up-waiting"
    assert "still busy" in str(word)
    assert "72 h" in str(word)


@pytest.mark.parametrize("kind", [Retry, Snooze])
@pytest.mark.parametrize(
    ("wait", "written"), [(NAN, 0), (-1, 0), (-INF, 0), (-0.0, 0), (INF, MAX_CAP_S), (1e300, MAX_CAP_S), (0, 0), (1.5, 1.5)]
)
def test_a_wait_that_is_no_wait_is_made_one(kind: type[Retry] | type[Snooze], wait: float, written: float) -> None:
    word = decided(kind(wait))
    assert isinstance(word, kind)
    assert word.delay_s == written


@pytest.mark.parametrize("kind", [Retry, Snooze])
@pytest.mark.parametrize("wait", ["30", "crm says 503", b"30", True, [], 10**400], ids=repr)
def test_a_wait_that_is_no_time_is_refused_where_it_is_written_and_fails_the_run_with_that_text(
    kind: type[Retry] | type[Snooze], wait: Any
) -> None:
    error = as_raised(lambda: kind(wait, "later"))
    text = f"{kind.__name__}: delay_s must be a number of seconds or a timedelta, got {wait!r:.80}; hint: {kind.__name__}("
    assert isinstance(error, TypeError)
    assert str(error).startswith(text)
    [letter] = written_for(decided(error, attempts=1), failed=0).dead
    assert letter.error.startswith(f"TypeError: {text}")
    assert not as_dead(decided(error, attempts=1)).asked


def test_a_snooze_must_say_for_how_long() -> None:
    with pytest.raises(TypeError, match=r"Snooze: delay_s must be a number of seconds or a timedelta, got None"):
        Snooze(cast("float", None))


@pytest.mark.parametrize("kind", [Retry, Snooze])
def test_a_wait_may_be_a_timedelta(kind: type[Retry] | type[Snooze]) -> None:
    word = decided(raised(kind(timedelta(minutes=1, milliseconds=500))))
    assert isinstance(word, kind)
    assert (word.delay_s, word.reason) == (60.5, f"{'retry in' if kind is Retry else 'snooze for'} 60.5 s")


class Busy(Retry):
    """A retry of the user's own, with a constructor of its own, whose wait is the policy's."""

    def __init__(self) -> None:
        self.delay_s = cast("float", None)


@pytest.mark.parametrize("make", [lambda: Retry(reason="crm says 503"), lambda: Retry(None, "crm says 503"), Busy, Retry])
def test_a_retry_without_a_wait_waits_as_the_policy_says_also_through_a_child_process(make: Callable[[], Retry]) -> None:
    for error in (raised(make()), in_child(raised(make()))):
        outcome = as_retry(decided(error, failed=1))
        assert (outcome.delay_s, outcome.asked) == (10, True)
        assert outcome.reason in ("crm says 503", "retry", "retry in 10 s")


def test_an_outcome_tells_what_a_handler_asked_for_from_what_has_failed() -> None:
    for error in (Retry(3, "503"), Snooze(3, "503"), Dead("503"), ExceptionGroup("two", [OSError(), Retry(3, "503")])):
        for outcome in (decided(raised(error)), decided(in_child(raised(error)))):
            assert isinstance(outcome, Decision)
            assert (outcome.asked, outcome.reason) == (True, "503")
    last = as_dead(decided(Retry(3, "503"), attempts=1))
    assert (last.code, last.asked) == ("attempts", True), "it asked for more than there was"
    assert as_dead(decided(Snooze(1), snoozed_ms=NOW_MS - MAX_SNOOZE_MS - 1)).asked
    for error in (ValueError("503"), TimedOut("late"), Cancelled("by ann"), UnfitPayload("no"), Property()):
        for attempts in (1, 3):
            outcome = decided(raised(error), attempts=attempts)
            assert isinstance(outcome, Decision)
            assert not outcome.asked
    assert as_retry(decided(ValueError("503"))).reason == "ValueError: 503"


@pytest.mark.parametrize(
    "numbers", [{"cap_s": INF}, {"base_s": 1e300, "cap_s": 1e308}, {"base_s": INF, "cap_s": INF}, {"cap_s": 1e12}]
)
@pytest.mark.parametrize("failed", [0, 40, 900])
def test_a_policy_is_refused_or_its_waits_can_be_written(numbers: dict[str, float], failed: int) -> None:
    try:
        by = handler(attempts=1000, **numbers)
    except ValueError:
        return
    written = written_for(decided(ValueError("no"), 0.999, by, failed=failed))
    assert 0 <= written.defer[0].when_ms + NOW_MS < SAFE


# --- exceptions of the user's own --------------------------------------------------------------------------------------------

# Each is raised by a handler. None may get past `decide`, nor may anything of it but plain texts and numbers.


def raises_anything(*given: Any, **named: Any) -> Any:
    raise Panic("read me not")


class Panic(BaseException):
    """No Exception."""


class Forgetful(Retry):
    """Never calls our constructor."""

    def __init__(self, host: str) -> None:
        Exception.__init__(self, host)


class ForgetfulDead(Dead):
    """Never calls our constructor."""

    def __init__(self, name: str) -> None:
        self.name = name


class ForgetfulSnooze(Snooze):
    """Never calls our constructor."""

    def __init__(self) -> None:
        pass


class ForgetfulPayload(UnfitPayload):
    """Never calls our constructor."""

    def __init__(self) -> None:
        pass


@dataclass
class Declined(Dead):
    """A dataclass: compared by value, cannot be hashed, and its constructor calls no other."""

    account: str


class Shouting(str):
    """A text whose every method is the user's."""

    __slots__ = ()
    encode = __getitem__ = __str__ = __format__ = __repr__ = raises_anything


class Telling(Exception):
    """Its text is no plain text."""

    def __str__(self) -> str:
        return Shouting("told")


class Liar(Exception):
    """Asked for what it is, it raises."""

    __class__ = __traceback__ = property(raises_anything)  # pyright: ignore[reportAssignmentType]
    __str__ = __repr__ = __eq__ = __hash__ = __getattribute__ = raises_anything


class NumberOnly(Exception):
    """Its message is a number."""

    def __str__(self) -> str:
        return 7  # noqa: PLE0307  # pyright: ignore[reportReturnType]


class Meta(type):
    """A class whose name cannot be read."""

    __name__ = property(raises_anything)  # pyright: ignore[reportAssignmentType]


class Nameless(Exception, metaclass=Meta):
    """Of a class whose name cannot be read."""


class OddGroup(ExceptionGroup[Exception]):
    """A group that shows nothing of itself."""

    exceptions = message = property(raises_anything)  # pyright: ignore[reportAssignmentType]
    __str__ = derive = raises_anything


class Property(Retry):
    """A wait that is worked out, and raises."""

    delay_s = property(raises_anything, raises_anything)  # pyright: ignore[reportAssignmentType]

    def __init__(self) -> None:
        Exception.__init__(self)


class OddText:
    """An object that has no text."""

    __str__ = __repr__ = raises_anything


class OddNumber:
    """An object that is no number, though it seems to be one."""

    __float__ = __int__ = raises_anything


def with_attribute(error: Exception, name: str, value: Any) -> Exception:
    setattr(error, name, value)
    return error


UNREADABLE = {
    "retry without constructor": lambda: Forgetful("pos-1"),
    "dead without constructor": lambda: ForgetfulDead("acc-1"),
    "snooze without constructor": ForgetfulSnooze,
    "payload without constructor": ForgetfulPayload,
    "dead as a dataclass": lambda: Declined("acc-1"),
    "wait is a text": lambda: with_attribute(Retry(1), "delay_s", "soon"),
    "wait is a number in a text": lambda: with_attribute(Retry(1), "delay_s", "30"),
    "wait is nothing": lambda: with_attribute(Snooze(1), "delay_s", None),
    "wait is huge": lambda: with_attribute(Retry(1), "delay_s", 10**400),
    "wait is odd": lambda: with_attribute(Retry(1), "delay_s", OddNumber()),
    "wait is no number at all": lambda: with_attribute(Retry(1), "delay_s", Decimal("sNaN")),
    "wait raises": Property,
    "code raises": lambda: Dead("no", cast("str", OddText())),
    "code of a payload raises": lambda: UnfitPayload("no", cast("str", OddText())),
}
ODD = {
    "text is no plain text": lambda: Telling("no"),
    "text of dead is no plain text": lambda: Dead(Shouting("no"), Shouting("code")),
    "nothing can be asked": lambda: Liar("no"),
    "message is a number": lambda: NumberOnly("no"),
    "class without a name": lambda: Nameless("no"),
    "group that shows nothing": lambda: OddGroup("no", [ValueError("leaf")]),
    "group of odd ones": lambda: ExceptionGroup("no", [Liar("no"), Telling("no")]),
    "dead with a cause that is none": lambda: Dead("no", error=cast("Exception", OddText())),
    "wait is no number": lambda: with_attribute(Retry(1), "delay_s", float("nan")),
    "wait is the policy's": Retry,
    "wait is a timedelta": lambda: with_attribute(Snooze(1), "delay_s", timedelta(seconds=1)),
    "wait is a decimal": lambda: with_attribute(Retry(1), "delay_s", Decimal("1.5")),
    "stack raises": lambda: with_attribute(ValueError("no"), "stack", OddText()),
}


@pytest.mark.parametrize("make", UNREADABLE.values(), ids=list(UNREADABLE))
def test_a_word_that_cannot_be_read_is_a_failure_by_the_policy_with_both_errors_in_its_letter(
    make: Callable[[], BaseException],
) -> None:
    error = raised(make())
    assert as_retry(decided(error)).delay_s == 5
    letter = written_for(decided(error, failed=2), failed=2).dead[0]
    assert (letter.code, letter.attempts) == ("attempts", 3)
    assert "cannot be taken at its word" in letter.error
    second = letter.error.partition("word: ")[2]
    assert second.split(":")[0] in ("AttributeError", "TypeError", "OverflowError", "ValueError", "Panic")
    assert letter.stack.count("in raised") == 1
    assert "settle.py" in letter.stack


@pytest.mark.parametrize("make", [*UNREADABLE.values(), *ODD.values()], ids=[*UNREADABLE, *ODD])
@pytest.mark.parametrize("failed", [0, 2])
def test_whatever_was_raised_its_outcome_is_of_our_own_classes_and_plain(make: Callable[[], BaseException], failed: int) -> None:
    error = raised(make())
    for one in (error, BaseExceptionGroup("no", [error])):
        outcome = decided(one, failed=failed)
        assert type(outcome) in (Retry, Snooze, Dead)
        batch = written_for(outcome, failed=failed)
        assert len(batch) == 1
        for value in (value for move in (*batch.defer, *batch.dead) for value in msgspec.structs.astuple(move)[1:]):
            assert type(value) in (str, int, bytes)
        sent = as_plain_words(one)
        assert {type(word) for word in sent} <= {str, float, bool, type(None)}
        assert pickle.loads(pickle.dumps(sent)) == sent


@pytest.mark.parametrize("claimed", [LeaseLost, NotStarted, NoPlace, Dead, Snooze, UnfitPayload, ChildFailed])
def test_an_error_is_what_its_type_says_whatever_class_it_claims(claimed: type[Exception]) -> None:
    class Claims(Exception):
        __class__ = property(lambda self: claimed)  # pyright: ignore[reportAssignmentType]

    for one in (raised(Claims("my text")), raised(ExceptionGroup("no", [raised(Claims("my text"))]))):
        assert as_retry(decided(one)).delay_s == 5
        assert not has_word(one)
        letter = as_dead(decided(one, failed=2))
        assert (letter.code, letter.is_failure) == ("attempts", True)
        assert "Claims: my text" in str(letter)
        assert "in raised" in letter.stack
        kind, text, stack, name = as_plain_words(one)
        assert "Claims" in name or "ExceptionGroup" in name
        assert kind == "error"
        assert "Claims: my text" in text
        assert "in raised" in stack


def test_what_was_sent_as_words_keeps_no_stack() -> None:
    inner = ValueError("no")
    error = raised(Dead("no"))
    error.__cause__ = raised(inner)
    as_plain_words(error)
    assert error.__traceback__ is None
    assert inner.__traceback__ is None


def test_of_a_group_the_errors_in_it_keep_no_stack_either() -> None:
    inner = raised(ValueError("no"))
    as_plain_words(raised(ExceptionGroup("several", [inner])))
    assert inner.__traceback__ is None


def test_a_dead_of_the_user_s_own_needs_no_more_than_a_code() -> None:
    class Gone(Dead):
        code = "gone"

        def __init__(self, name: str) -> None:
            self.name = name

    assert as_dead(decided(Gone("acc-1"))).code == "gone"


def test_a_policy_of_the_user_s_own_that_raises_is_as_none() -> None:
    class Odd(Backoff):
        attempts = property(raises_anything, lambda self, value: None)  # pyright: ignore[reportAssignmentType]
        base_s = cap_s = property(raises_anything, lambda self, value: None)  # pyright: ignore[reportAssignmentType]

        def __post_init__(self) -> None:
            pass

    by = Handler(contract_of(Greet), greet, lambda job: Greet(), greet, 30.0, object.__new__(Odd), "loop")
    assert as_retry(decided(ValueError("no"), 1.0, by)).delay_s == 1
    assert as_dead(decided(ValueError("no"), 1.0, by, failed=7)).code == "attempts"


class Held:
    """What is in a frame of the stack, and should go with it."""


MAKERS: list[Callable[[], BaseException]] = [
    lambda: Dead("no"),
    lambda: ValueError("no"),
    lambda: Snooze(1),
    lambda: UnfitPayload("no"),
    lambda: Forgetful("no"),
    lambda: ExceptionGroup("no", [Dead("no")]),
]


@pytest.mark.parametrize("make", MAKERS)
def test_nothing_of_what_was_raised_is_kept_nor_held_by_itself(make: Callable[[], BaseException]) -> None:
    def fails(held: Held) -> None:
        raise make()

    held = Held()
    seen = weakref.ref(held)
    gc.collect()
    gc.disable()
    try:
        try:
            fails(held)
        except BaseException as error:
            outcome = decided(error, failed=2, snoozed_ms=1)
        del held
        assert seen() is None, outcome
    finally:
        gc.enable()


# --- words in groups ---------------------------------------------------------------------------------------------------------


def test_a_word_in_a_group_is_heard() -> None:
    group = ExceptionGroup("no", [ExceptionGroup("no", [raised(Dead("no such account", code="no-account"))])])
    word = as_dead(decided(raised(group)))
    assert (str(word), word.code, word.is_failure) == ("no such account", "no-account", True)
    assert "in raised" in word.stack
    assert as_retry(decided(ExceptionGroup("no", [Retry(30, "rate limit")]))).delay_s == 30
    assert as_snooze(decided(ExceptionGroup("no", [Snooze(30, "busy")]), failed=2, attempts=1)).delay_s == 30


def test_of_several_words_in_a_group_the_hardest_is_heard_whatever_is_beside() -> None:
    group = ExceptionGroup("no", [ValueError("no"), Snooze(1), ExceptionGroup("no", [Retry(2), KeyError("no")]), Retry(3)])
    assert as_retry(decided(group)).delay_s == 2
    assert str(as_dead(decided(ExceptionGroup("no", [group, Dead("first"), Dead("second")])))) == "first"


def test_a_group_without_a_word_is_a_failure_that_tells_its_first_leaf() -> None:
    group = raised(ExceptionGroup("no", [ExceptionGroup("no", [raised(KeyError("acc-42"))]), ValueError("no")]))
    assert "KeyError: 'acc-42'" in str(as_retry(decided(group)))
    word = as_dead(decided(group, failed=2))
    assert word.code == "attempts"
    assert word.stack.count("in raised") == 2


def test_a_group_that_holds_the_same_again_and_again_is_looked_at_once() -> None:
    group = ExceptionGroup("no", [ValueError("leaf")])
    for _ in range(100):
        group = ExceptionGroup("no", [group, group])
    assert "leaf" in str(as_retry(decided(group)))


# --- words for people --------------------------------------------------------------------------------------------------------


def test_an_ordinary_error_is_told_with_its_class() -> None:
    assert describe(ValueError("no such file")) == "ValueError: no such file"
    assert describe(KeyError("a")) == "KeyError: 'a'"


@pytest.mark.parametrize("word", [Retry(5, "later"), Snooze(5, "later"), Dead("later"), UnfitPayload("later")])
def test_a_handler_s_own_words_are_told_as_they_are(word: Exception) -> None:
    assert describe(word) == "later"


def test_an_error_whose_message_raises_is_told_all_the_same() -> None:
    assert describe(Mute()) == "Mute: (its message raised RuntimeError)"
    assert "its message raised" in str(as_retry(decided(Mute())))
    assert "its message raised" in str(as_dead(decided(Mute(), failed=2)))
    assert "its message raised" in written_for(decided(Dead(cast("str", Mute())))).dead[0].error


def test_a_long_message_is_cut() -> None:
    assert len(describe(ValueError("x" * 100_000))) == 1000
    assert describe(ValueError("x" * 100_000)).startswith("ValueError: xxx")


@pytest.mark.parametrize("error", [ValueError("caf\udce9.txt"), Dead("caf\udce9.txt"), Retry(1, "caf\udce9.txt")])
def test_a_message_that_is_no_utf_8_can_be_written_all_the_same(error: Exception) -> None:
    written = written_for(decided(error, attempts=1))
    assert b"caf" in written.dead[0].error.encode()


class Reason(Enum):
    """A closed set of codes, as a handler may have it."""

    NO_ACCOUNT = "no-account"


@pytest.mark.parametrize("code", ["caf\udce9", None, Reason.NO_ACCOUNT], ids=["no-utf-8", "none", "enum"])
def test_a_code_that_is_no_text_can_be_written_all_the_same(code: Any) -> None:
    error = as_raised(lambda: Dead("no", code=code))
    assert written_for(decided(error, attempts=1)).dead[0].code.encode()


def test_a_code_of_an_enumeration_is_its_value() -> None:
    assert written_for(decided(Dead("no", code=cast("str", Reason.NO_ACCOUNT)))).dead[0].code == "no-account"


def test_a_long_code_is_cut() -> None:
    assert written_for(decided(Dead("no", code="x" * 1000))).dead[0].code == "x" * 64


def down(levels: int) -> None:
    further_down(levels - 1)


def further_down(levels: int) -> None:
    if levels < 0:
        raise ValueError("no")
    down(levels)


def test_the_stack_says_where_an_error_came_from() -> None:
    error = raised(ValueError("no"))
    assert "in raised" in stack_of(error)


def test_an_error_without_a_stack_has_none() -> None:
    assert stack_of(None) == stack_of(ValueError("never raised")) == ""


def test_a_stack_from_a_child_process_is_kept() -> None:
    class Told(Exception):
        stack = "somewhere else, line 7"

    assert stack_of(Told()) == "somewhere else, line 7"


def test_a_long_stack_keeps_its_newest_frames() -> None:
    try:
        down(200)
    except ValueError as error:
        stack = stack_of(error)
    assert 7000 < len(stack) <= 8000
    assert stack.rstrip().endswith('raise ValueError("no")')


def test_a_stack_is_cut_at_its_old_end() -> None:
    class Told(Exception):
        stack = "old" + "x" * 9000 + "new"

    assert len(stack_of(Told())) == 8000
    assert stack_of(Told()).endswith("new")


def test_a_stack_that_is_no_utf_8_can_be_written_all_the_same() -> None:
    class Told(Exception):
        stack = "in caf\udce9.py"

    assert b"in caf" in stack_of(Told()).encode()


@pytest.mark.parametrize("word", [Retry, Snooze])
def test_a_pause_of_the_type_is_taken_at_its_word_also_through_a_child_process(word: type[Retry] | type[Snooze]) -> None:
    for asked in (True, False):
        outcome = decided(raised(word(5, "429", pause_type=asked)))
        assert isinstance(outcome, (Retry, Snooze))
        assert outcome.pause_type is asked
        with pytest.raises(word) as again:
            raise_again(*as_plain_words(word(5, "429", pause_type=asked)))
        assert again.value.pause_type is asked


def test_a_subclass_with_a_constructor_of_its_own_pauses_nothing() -> None:
    class Later(Snooze):
        def __init__(self) -> None:
            self.delay_s = 3.0

    outcome = decided(raised(Later()))
    assert isinstance(outcome, Snooze)
    assert (outcome.delay_s, outcome.pause_type) == (3.0, False)
