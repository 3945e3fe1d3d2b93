"""The shipped job handlers: the modules to look in, and which installation brings the imports they need."""

HANDLERS = ("handlers.email", "handlers.data", "handlers.maintenance")
EXTRAS = {"aiosmtplib": "backend-jobs[email]", "jinja2": "backend-jobs[email]"}
