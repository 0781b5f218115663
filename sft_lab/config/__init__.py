"""Config files and flags, merged key by key, and what makes two configs the same run."""
