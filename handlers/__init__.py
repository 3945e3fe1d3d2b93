"""The shipped job handlers: the modules that declare them, and the extra that installs what each import needs."""

HANDLERS = (
    "handlers.email",
    "handlers.notifications",
    "handlers.crm",
    "handlers.data",
    "handlers.maintenance",
    "handlers.reports",
    "handlers.checks",
)
_MAIL = "aiosmtplib jinja2"  # by their own names: an index knows these
_REPORTS = "reportlab jinja2"
EXTRAS = {"aiosmtplib": _MAIL, "jinja2": _MAIL, "reportlab": _REPORTS, "PIL": _REPORTS, "handlers.reports": _REPORTS}
