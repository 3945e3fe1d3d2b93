"""Mail templates: Jinja2 files in one configured folder, `name.txt` and optionally `name.html`, rendered in a sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from jinja2 import FileSystemLoader, StrictUndefined, TemplateError, TemplateNotFound, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from handlers.kit.failures import wait_for_operator
from runtime import Dead

MAX_BODY_CHARS: Final = 200_000  # rendering and encoding it hold up the loop for less than 20 ms (measured)

# What an expression of a template may raise on a value that it did not expect.
FAULTS: Final = (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError)


def render(folder: str, name: str, params: Mapping[str, Any], locale: str | None = None) -> tuple[str, str | None]:
    """Return the text body and, if the template has one, the HTML body, in which values are escaped.

    With a `locale` those of `name.de-AT.txt`, else `name.de.txt`, else `name.txt`; the HTML body is of the same language.

    Raises:
        Snooze: the folder has no text template of that name; `alias-missing`.
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
        raise _dead(file, f"it includes {error.name}, which does not exist") from error
    except TemplateSyntaxError as error:
        raise _dead(file, f"line {error.lineno}: {error.message}") from error
    except UndefinedError as error:
        raise _dead(file, str(error.message)) from error
    except FAULTS as error:
        raise _dead(file, type(error).__name__) from error  # its text may hold values of the payload
    if len(body) > MAX_BODY_CHARS:
        raise Dead(f"template {file}: rendered to {len(body)} characters, must be at most {MAX_BODY_CHARS}", "template-error")
    return body


def _dead(file: str, why: str) -> Dead:
    return Dead(f"template {file}: {why}", "template-error")


def _is_html(name: str | None) -> bool:
    return name is not None and name.endswith(".html")


@lru_cache(maxsize=8)
def _environment(folder: str) -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        autoescape=_is_html,
        keep_trailing_newline=True,
    )
