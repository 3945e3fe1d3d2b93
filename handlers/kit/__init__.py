"""What the handlers are built from: settings, mail and templates, databases and tables, files and folders, threads."""
