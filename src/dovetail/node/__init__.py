"""A partner's node: admits requests, spends its own ledger, contributes bounded vectors."""
