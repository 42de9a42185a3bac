"""Result files of benchmark runs: their schema, and the tables, plots, pages and comparisons made of them."""
