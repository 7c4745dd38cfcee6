package roost

import "time"

// Secret is what may be told of an app's secret: everything but its value.
type Secret struct {
	Name      string
	Digest    string // 16 hex digits: changes with the value, does not give it away
	CreatedAt time.Time
	UpdatedAt time.Time
	Staged    bool // set, but no release has brought it to the machines yet
}
