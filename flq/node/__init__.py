"""SuperNode: claims tasks, runs ClientApps in worker processes, returns results."""
