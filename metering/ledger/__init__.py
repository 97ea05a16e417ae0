"""The durable way in: attempts are journaled, written to the database and summed."""
