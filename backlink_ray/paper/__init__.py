"""The paper's cells, recipes, tables and claims."""
