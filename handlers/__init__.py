"""The shipped job handlers: the modules that declare them, and the extra that installs what each import needs."""

HANDLERS = (
    "handlers.email",
    "handlers.notifications",
    "handlers.crm",
    "handlers.data",
    "handlers.maintenance",
    "handlers.reports",
    "handlers.ml",
    "handlers.inference",
    "handlers.threats",
    "handlers.vulnerabilities",
    "handlers.compliance",
    "handlers.checks",
)
_MAIL = "aiosmtplib jinja2"  # by their own names: an index knows these
_REPORTS = "reportlab jinja2"
_ML = "numpy onnxruntime scikit-learn skops"
_SIGMA = "google-re2 pysigma pysigma-backend-sqlite"
_SCANS = "packaging cvss"
EXTRAS = {
    **dict.fromkeys(("aiosmtplib", "jinja2"), _MAIL),
    **dict.fromkeys(("reportlab", "PIL", "handlers.reports", "handlers.compliance"), _REPORTS),
    **dict.fromkeys(("re2", "sigma", "yaml", "handlers.threats"), _SIGMA),
    **dict.fromkeys(("packaging", "cvss", "handlers.vulnerabilities"), _SCANS),
    **dict.fromkeys(("numpy", "onnxruntime", "sklearn", "skops", "threadpoolctl", "handlers.ml", "handlers.inference"), _ML),
}
