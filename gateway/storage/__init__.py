"""What is on disk: the data directory, the database and its migrations, uploaded content."""
