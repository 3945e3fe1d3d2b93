"""The shipped job handlers: the modules that declare them, and the extra that installs what each import needs."""

HANDLERS = ("handlers.email", "handlers.data", "handlers.maintenance")
EXTRAS = {"aiosmtplib": "backend-jobs[email]", "jinja2": "backend-jobs[email]"}
