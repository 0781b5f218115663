"""From files of rows to conversations, and from conversations to tokens on disk."""
