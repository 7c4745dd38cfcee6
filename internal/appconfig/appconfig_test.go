package appconfig

import (
	"encoding/json"
	"testing"
)

// TestWorkedExample is the one of the specification, section 15.
func TestWorkedExample(t *testing.T) {
	c, problems := Parse("fly.toml", []byte(`
app = "demo"
primary_region = "iad"
kill_signal = "SIGTERM"
kill_timeout = 30
[processes]
  web = "server --port 8080"
  worker = "jobs run"
[deploy]
  release_command = "migrate up"
[http_service]
  processes = ["web"]
  internal_port = 8080
  force_https = true
  auto_stop_machines = "suspend"
  [[http_service.checks]]
    path = "/up"
    interval = "10s"
    timeout = "2s"
    grace_period = "5s"
`))
	if len(problems) > 0 {
		t.Fatalf("problems: %v", problems)
	}
	want := map[string]string{
		"web": `{"env":{"FLY_PROCESS_GROUP":"web","PRIMARY_REGION":"iad"},"init":{"cmd":["server","--port","8080"]},` +
			`"metadata":{"fly_platform_version":"v2","fly_process_group":"web"},` +
			`"services":[{"protocol":"tcp","internal_port":8080,"ports":[{"port":80,"handlers":["http"],"force_https":true},{"port":443,"handlers":["http","tls"]}],` +
			`"autostop":"suspend","checks":[{"type":"http","interval":"10s","timeout":"2s","grace_period":"5s","path":"/up"}],"force_instance_key":null}],` +
			`"stop_config":{"signal":"SIGTERM","timeout":"30s"}}`,
		"worker": `{"env":{"FLY_PROCESS_GROUP":"worker","PRIMARY_REGION":"iad"},"init":{"cmd":["jobs","run"]},` +
			`"metadata":{"fly_platform_version":"v2","fly_process_group":"worker"},"stop_config":{"signal":"SIGTERM","timeout":"30s"}}`,
	}
	for group, want := range want {
		m, err := c.Machine(group)
		if err != nil {
			t.Fatal(err)
		}
		got, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%s:\n got %s\nwant %s", group, got, want)
		}
	}
	d, err := c.Deploy()
	if err != nil || len(d.ReleaseCommand) != 2 || d.ReleaseCommand[0] != "migrate" {
		t.Errorf("release command: got %q, %v", d.ReleaseCommand, err)
	}
}
