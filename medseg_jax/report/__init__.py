"""What a person looks at: numbers, tables and pictures."""
