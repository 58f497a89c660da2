"""The search: a study is created, its loop asks, scores and tells, its finalists are judged."""
