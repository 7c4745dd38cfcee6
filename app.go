package roost

import "time"

// Org is an organisation: apps, networks and tokens belong to one.
type Org struct {
	Slug      OrgSlug
	Name      string
	CreatedAt time.Time
}

// App is a name under which machines run.
type App struct {
	Name      AppName
	ID        string // opaque, 16 characters
	Org       OrgSlug
	Network   NetworkName
	NetworkID uint32 // the network's part of every 6PN address in it
	CreatedAt time.Time
	Deleting  bool // accepted for deletion; takes no new machines

	// Hostnames are the app's besides <app>.<domain>: "shop.example.com".
	// Unique in the cluster.
	Hostnames []string
	// Routes send requests to a process group of their own; the first that
	// matches counts. They come with the app's release.
	Routes []Route
	// Release is the version of the release that serves now, 0 before the first.
	Release int
	// Secrets is the version of the secrets that new machines get, 0 none.
	Secrets int
}

// Route is a rule of [[serverless]]: requests that match it go to the machines
// of a process group.
type Route struct {
	// Paths are patterns: a segment "*" matches any one, a last "**" any rest.
	Paths   []string
	Methods []string // none: all
	Group   string
	// Shared says that the group is one of the app's ordinary ones, too: its
	// machines also take requests that no route matches. Without it they are
	// kept for the routes.
	Shared bool
}

// Network is a private network. Its id is never used again, not even after
// its last app is gone.
type Network struct {
	Org       OrgSlug
	Name      NetworkName
	ID        uint32
	CreatedAt time.Time
}
