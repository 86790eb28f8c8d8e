"""Self-contained HTML pages: template, style, pictures and players."""
