"""SuperExec: the Celery worker that launches ServerApps and records their life cycle."""
