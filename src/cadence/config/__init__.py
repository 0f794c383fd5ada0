"""What a user may ask for: the schema, its checks and their errors."""
