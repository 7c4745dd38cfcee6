package appconfig

// Words cuts a command line into words as a shell would, without expanding
// anything: what a person gives as one argument becomes a list.
func Words(command string) ([]string, error) { return split(command) }
