"""What several handlers share: settings, mail, templates."""
