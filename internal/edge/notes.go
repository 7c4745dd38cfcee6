package edge

import (
	"fmt"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/machinelog"
	"github.com/roost-run/roost/internal/proxy"
)

// What the edge writes into the logs of apps; the words are those of the Fly
// docs, which people search for.

// notify writes what the proxy has to say of an app's traffic.
func (e *edge) notify(n proxy.Notice) {
	e.logs.SayOnce(n.App, n.Machine, machinelog.ProviderProxy, n.Key, n.Message)
}

// turned writes that a check began or ceased to fail.
func (e *edge) turned(m *root.Machine, c root.NamedCheck, old string, now root.CheckResult) {
	line := ""
	switch {
	case now.Status == root.CheckCritical:
		line = fmt.Sprintf("Health check '%s' on port %d has failed. ", c.Name, c.Port)
		if ports := gatedPorts(m, &c); len(ports) > 0 {
			line += fmt.Sprintf("Your app is not responding properly. Services exposed on ports [%s] will have intermittent failures until the health check passes. ", strings.Join(ports, ", "))
		}
		line += "It said: " + strings.ReplaceAll(now.Output, "\n", " ")
	case now.Status == root.CheckPassing && old == root.CheckCritical:
		line = fmt.Sprintf("Health check '%s' on port %d is now passing.", c.Name, c.Port)
	default:
		return // the first result, and nothing is wrong
	}
	e.logs.SayOnce(m.App, m.ID, machinelog.ProviderHealth, c.Name+"/"+string(m.ID)+"/"+now.Status, line)
}

// gatedPorts are the outside ports whose traffic a check gates.
func gatedPorts(m *root.Machine, c *root.NamedCheck) []string {
	var ports []string
	for i := range m.Spec.Config.Services {
		if !c.Gates(i) {
			continue
		}
		for _, p := range m.Spec.Config.Services[i].Ports {
			ports = append(ports, fmt.Sprint(p.Port))
		}
	}
	return ports
}

// reachable writes how long a machine that was started took to take
// connections.
func (e *edge) reachable(id root.MachineID, instance root.InstanceID) {
	m := e.catalog.Snapshot().Machine(id)
	if m == nil || m.Spec.Instance != instance || len(m.Spec.Config.Services) == 0 {
		return
	}
	in, _ := e.live.get(instance)
	st := e.prober.Status(instance, m.Spec.Config.Services[0].InternalPort)
	if !st.Ready || st.Since.Sub(in.started) > time.Second { // it was reachable before
		return
	}
	e.logs.SayOnce(m.App, id, machinelog.ProviderProxy, "reachable/"+string(instance),
		fmt.Sprintf("machine became reachable in %s", time.Since(st.Since).Round(100*time.Microsecond)))
}
