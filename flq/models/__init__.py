"""The schema: declarative tables and the views for people. No queries."""
