package config

import (
	"io"
	"log/slog"
)

// Logger returns the logger of one process of ours, by the configured level;
// each of its lines names the process ("server", "control", "edge", "builder").
func (c *Config) Logger(w io.Writer, process string) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		level = slog.LevelInfo // not a configuration that was checked
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})).With("process", process)
}
