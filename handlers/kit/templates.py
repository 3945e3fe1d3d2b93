"""Mail templates: Jinja2 files in one configured folder, `name.txt` and optionally `name.html`, rendered in a sandbox."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sized
from functools import lru_cache, wraps
from typing import Any, Final

from jinja2 import FileSystemLoader, StrictUndefined, TemplateError, TemplateNotFound, TemplateSyntaxError, UndefinedError
from jinja2.meta import find_referenced_templates
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from handlers.kit.failures import wait_for_operator
from runtime import Dead, Snooze

MAX_BODY_CHARS: Final = 200_000  # rendering and encoding it hold up the loop for less than 20 ms (measured)
MAX_BITS: Final = 4096  # a guess: of a number that a template computes; far above any amount
MAX_WIDTH: Final = 998  # RFC 5322 (2.1.1): a line of a mail has no more characters
PADDING: Final = frozenset({"center", "ljust", "rjust", "zfill"})

# What an expression of a template may raise on a value that it did not expect.
FAULTS: Final = (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError)

_MISSING: Final = re.compile(r".* has no (?:attribute|element) (?P<name>.*)|(?P<variable>.*) is undefined", re.DOTALL)


def render(folder: str, name: str, params: Mapping[str, Any], locale: str | None = None) -> tuple[str, str | None]:
    """Return the text body and, if the template has one, the HTML body, in which values are escaped.

    With a `locale` those of `name.de-AT.txt`, else `name.de.txt`, else `name.txt`; the HTML body is of the same language.

    Raises:
        Snooze: the folder has no text template of that name, or it is no template, or includes one that is not there;
            `alias-missing`.
        Dead: a variable is missing, or the template fails on these values; `template-error`.
    """
    languages = [f".{locale}", f".{locale.partition('-')[0]}"] if locale else []
    for stem in (f"{name}{language}" for language in (*languages, "")):
        text = _render_file(folder, f"{stem}.txt", params)
        if text is not None:
            return text, _render_file(folder, f"{stem}.html", params)
    raise wait_for_operator(f"templates.{name}", "alias-missing", f"no {name}.txt in {folder}")


def _render_file(folder: str, file: str, params: Mapping[str, Any]) -> str | None:
    try:
        body = _environment(folder).get_template(file).render(params)
    except TemplateNotFound as error:
        if error.name == file:
            return None
        if isinstance(error.name, str) and is_written(error.name, _sources(folder, file)):
            raise _broken(file, f"it includes {error.name}, which does not exist") from error
        raise _dead(file, "it includes a template that does not exist") from error
    except TemplateSyntaxError as error:
        raise _broken(file, f"line {error.lineno}: {error.message}") from error
    except UnicodeDecodeError as error:
        raise _broken(file, "must be UTF-8") from error
    except UndefinedError as error:
        raise _dead(file, what_is_missing(error.message or "", _sources(folder, file))) from error
    except FAULTS as error:
        raise _dead(file, type(error).__name__) from error  # its text may hold values of the payload
    if len(body) > MAX_BODY_CHARS:
        raise Dead(f"template {file}: rendered to {len(body)} characters, must be at most {MAX_BODY_CHARS}", "template-error")
    return body


def _dead(file: str, why: str) -> Dead:
    return Dead(f"template {file}: {why}", "template-error")


def _broken(file: str, why: str) -> Snooze:
    """Return what to raise for a template that is wrong whatever the values are."""
    return wait_for_operator(f"templates.{file}", "alias-missing", why)


def what_is_missing(message: str, source: str) -> str:
    """Return what Jinja2 says is missing, unless it was looked for by a name that is not in the template, but a value."""
    found = _MISSING.fullmatch(message)
    name = (found["name"] or found["variable"] or "").strip("'\"") if found else ""
    return message if is_written(name, source) else "a value is missing"


def is_written(name: str, source: str) -> bool:
    """Return whether a name stands in a template as a word of its own; numbers do not count, since any may stand there."""
    return bool(name) and not name.isdigit() and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", source) is not None


def _sources(folder: str, file: str) -> str:
    """Return the text of a template, and of those that it names."""
    environment = _environment(folder)
    loader = FileSystemLoader(folder)
    found, names = dict[str, str](), [file]
    while names:
        name = names.pop()
        if name in found:
            continue
        found[name] = ""
        with contextlib.suppress(TemplateError, UnicodeDecodeError):
            found[name] = loader.get_source(environment, name)[0]
            names += [each for each in find_referenced_templates(environment.parse(found[name])) if each]
    return "\n".join(found.values())


def _is_html(name: str | None) -> bool:
    return name is not None and name.endswith(".html")


class Sandbox(ImmutableSandboxedEnvironment):
    """A sandbox in which a value of a payload cannot make a small template compute for long, or fill the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters |= {name: _narrow(self.filters[name]) for name in ("center", "indent")}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Return left * right or left ** right.

        Raises:
            OverflowError: the result would be too large.
        """
        if _size(left) * (right if operator == "**" and isinstance(right, int) else 1) + _size(right) > MAX_BITS:
            raise OverflowError
        if operator == "*" and max(_times(left, right), _times(right, left)) > MAX_BODY_CHARS:
            raise OverflowError
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls; the methods of texts that pad them with a width in bounds."""
        if isinstance(getattr(function, "__self__", None), str) and getattr(function, "__name__", "") in PADDING:
            function = _narrow(function)
        return super().call(context, function, *args, **kwargs)


def _size(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _times(value: Any, count: Any) -> int:
    return len(value) * count if isinstance(count, int) and isinstance(value, Sized) else 0


def _narrow(pad: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function, which raises OverflowError for a number above `MAX_WIDTH`."""

    @wraps(pad)
    def call(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(each, int) and each > MAX_WIDTH for each in (*args, *kwargs.values())):
            raise OverflowError
        return pad(*args, **kwargs)

    return call


@lru_cache(maxsize=8)
def _environment(folder: str) -> Sandbox:
    return Sandbox(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        autoescape=_is_html,
        keep_trailing_newline=True,
    )
