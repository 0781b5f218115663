"""Steps, bytes and minutes of a run, before anything is trained."""
