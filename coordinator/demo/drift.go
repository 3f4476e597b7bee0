package demo

import "context"

func (d *demo) plant(context.Context) error { return nil }
