"""The command line of studies, tables and figures."""
