"""What a study found, for people and for other tools.

`summary` is the contract that other tools read (`summary.json`), `headline` says it in plain sentences, `view` holds
all that the page needs, `render` makes the page (one HTML file that needs no network) and `tables` makes flat tables
for export. Nothing here runs a model or reads an artifact: plain numbers and arrays come in.
"""
