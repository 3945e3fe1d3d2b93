"""The shipped job handlers: the modules that declare them, and the extra that installs what each import needs."""

HANDLERS = ("handlers.email", "handlers.data", "handlers.maintenance")
_MAIL = "aiosmtplib jinja2"  # by their own names: an index knows these
EXTRAS = {"aiosmtplib": _MAIL, "jinja2": _MAIL}
