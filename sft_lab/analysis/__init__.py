"""What finished runs say; each definition lives here once."""
