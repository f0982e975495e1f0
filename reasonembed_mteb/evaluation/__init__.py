"""Models and tasks by name, scored through MTEB; what each result was made with."""
