package etcd

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"

	"go.uber.org/zap/zapcore"
)

// slogCore lets etcd write to our log. What etcd tells about its normal life
// is left out: only warnings and worse pass.
type slogCore struct {
	log  *slog.Logger
	with []zapcore.Field
	// closing is set while the member stops: etcd then reports as errors that
	// its listeners are closed.
	closing *atomic.Bool
}

// usual are warnings about things that are so by our choice (one socket for
// everything, no users within etcd, a backend flushed once a second), and of
// the client about errors that it returns anyway.
var usual = []string{
	"Running http and grpc server on single port. This is not recommended for production.",
	"simple token is not cryptographically signed",
	"Failed to detect schema version",
	"Failed to detect storage schema version. Please wait till wal snapshot before upgrading cluster.",
	"failed to update storage version",
	"retrying of unary invoker failed",
}

func (c *slogCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{log: c.log, with: slices.Concat(c.with, fields), closing: c.closing}
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	switch {
	case c.closing.Load() || slices.Contains(usual, e.Message):
		level = slog.LevelDebug
	case e.Level > zapcore.WarnLevel:
		level = slog.LevelError
	}
	ctx := context.Background() // zap's interface carries none
	if !c.log.Enabled(ctx, level) {
		return nil
	}
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range slices.Concat(c.with, fields) {
		f.AddTo(enc)
	}
	attrs := make([]slog.Attr, 0, len(enc.Fields)+1)
	attrs = append(attrs, slog.String("message", e.Message))
	for k, v := range enc.Fields {
		attrs = append(attrs, slog.Any(k, v))
	}
	c.log.LogAttrs(ctx, level, "etcd", attrs...)
	return nil
}

func (c *slogCore) Sync() error { return nil }
