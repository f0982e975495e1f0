"""Query variations, corpus poisoning, geometry of vectors, specialisation tax."""
