"""The paper's numbers, cells, recipes, tables and claims."""
