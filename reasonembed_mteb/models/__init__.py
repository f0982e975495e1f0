"""Models: ReasonEmbed, its MTEB encoder and metadata, and what goes before a query."""
