"""Taking over an application's publications and subscriptions."""
