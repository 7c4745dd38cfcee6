package main

import "context"

func (w *world) proxying(ctx context.Context) error { return nil }
