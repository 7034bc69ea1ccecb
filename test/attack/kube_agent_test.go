//go:build linux

package attack

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/postern-dev/postern/internal/packet/packettest"
)

// restart starts a killed agent and waits until it enforces.
func (x *try) restart() {
	x.Helper()
	if err := x.w.agent.Start(); err != nil {
		x.Fatal(err)
	}
	x.w.ready()
}

// killed kills the agent again and again under load; test/faults does so 200 times.
func (x *try) killed() {
	s := x.storm(evil(0), evil(1))
	if x.on {
		for i := range 20 {
			if err := x.w.agent.Kill(); err != nil {
				x.Fatal(err)
			}
			time.Sleep(time.Duration(i) * 3 * time.Millisecond)
			if err := x.w.agent.Start(); err != nil {
				x.Fatal(err)
			}
			time.Sleep(time.Duration(i*7) * time.Millisecond)
		}
		x.w.ready()
		x.beside = append(x.beside, isolation)
	} else {
		time.Sleep(50 * time.Millisecond)
	}
	s.stop(false)
	x.mixed() // what looks after DNAT was adopted too
}

// badStart starts the agent while its policies can't be read.
func (x *try) badStart() {
	s := x.storm(evil(0), evil(1))
	if x.on {
		path := filepath.Join(x.w.agent.Manifests, "policy.yaml")
		for _, bad := range []string{narrow[:len(narrow)/2], "{{{", "\x00\xff", "kind: NetworkPolicy\n"} {
			if err := x.w.agent.Kill(); err != nil {
				x.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
				x.Fatal(err)
			}
			if err := x.w.agent.Start(); err != nil {
				x.Fatal(err)
			}
			time.Sleep(300 * time.Millisecond)
			if err := x.w.agent.Kill(); err != nil {
				x.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(narrow+kubePolicy), 0o600); err != nil {
				x.Fatal(err)
			}
			x.restart()
		}
		x.beside = append(x.beside, isolation, "source-address")
	} else {
		time.Sleep(50 * time.Millisecond)
	}
	s.stop(true) // what to allow was not known
	if x.on {
		x.w.write("policy.yaml", narrow+kubePolicy+"# again\n")
		x.recountBeside()
	}
}

// lateInstall opens connections while nothing is installed, then installs.
func (x *try) lateInstall() {
	w := x.w
	if x.on {
		if err := w.agent.Kill(); err != nil {
			x.Fatal(err)
		}
		if err := w.agent.Uninstall(); err != nil {
			x.Fatal(err)
		}
	}
	var denied, kept []conn
	for v := range 2 {
		for _, network := range []string{"tcp", "udp"} {
			denied = append(denied, conn{network, x.dial(network, echoAt(evil(v)))})
			kept = append(kept, conn{network, x.dial(network, echoAt(web(v)))})
		}
	}
	for _, c := range append(slices.Clone(denied), kept...) {
		if !alive(c.Conn) {
			x.Fatalf("%s %s does not answer while nothing is installed", c.network, c.RemoteAddr())
		}
	}
	if x.on {
		x.restart()
		x.recount()
	}
	for _, c := range denied {
		x.says(c.Conn, x.attackToken(c.network+" connection to "+c.RemoteAddr().String()+" from before", 1))
	}
	for _, c := range kept {
		if !alive(c.Conn) {
			x.Errorf("%s connection to %s, which is allowed, was cut by the installation", c.network, c.RemoteAddr())
		}
	}
	if x.on {
		x.expectSome(isolation)
	}
}

// sourceAway takes the manifests away: as a whole, then file by file.
func (x *try) sourceAway() {
	dir := x.w.agent.Manifests
	s := x.storm(evil(0), evil(1))
	if x.on {
		if err := os.Rename(dir, dir+".away"); err != nil {
			x.Fatal(err)
		}
		time.Sleep(1200 * time.Millisecond) // longer than a rescan without notifications
		if err := os.Rename(dir+".away", dir); err != nil {
			x.Fatal(err)
		}
	}
	time.Sleep(100 * time.Millisecond)
	s.stop(false)
	s = x.storm(evil(0), evil(1))
	if x.on {
		files, err := filepath.Glob(filepath.Join(dir, "lab", "*.yaml"))
		if err != nil {
			x.Fatal(err)
		}
		files = append(files, filepath.Join(dir, "policy.yaml"))
		for _, f := range files {
			if err := os.Rename(f, f+".away"); err != nil {
				x.Fatal(err)
			}
		}
		time.Sleep(600 * time.Millisecond)
		for _, f := range files {
			if err := os.Rename(f+".away", f); err != nil {
				x.Fatal(err)
			}
		}
		time.Sleep(100 * time.Millisecond)
		x.w.ready()
		x.w.state("shop/frontend", "enforced")
		x.recountBeside()
	} else {
		time.Sleep(50 * time.Millisecond)
	}
	x.beside = append(x.beside, isolation)
	s.stop(true) // pods that nobody knows are cut off
	if x.on {
		x.recountBeside()
	}
}

// brokenState takes the pod's entry out of the kernel, behind the agent's back.
func (x *try) brokenState() {
	if !x.on {
		for v := range 2 {
			x.denied("no policy "+family(v), "", func(tok packettest.Token) []byte { return x.udp(evil(v), 443, tok) })
		}
		return
	}
	bpffs, err := x.w.lab.BPFFS(x.w.node.Name)
	if err != nil {
		x.Fatal(err)
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(bpffs, "postern", "endpoint_slots"), nil)
	if err != nil {
		x.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	var slot uint32
	if err := m.Lookup(uint32(x.pod.HostIfindex), &slot); err != nil {
		x.Fatal(err)
	}
	if err := m.Delete(uint32(x.pod.HostIfindex)); err != nil {
		x.Fatal(err)
	}
	for v := range 2 {
		for _, to := range []netip.Addr{evil(v), web(v)} {
			x.denied("without an entry "+family(v), "", func(tok packettest.Token) []byte { return x.udp(to, controlPort, tok) }, everyMode...)
		}
	}
	x.w.state("shop/frontend", "failed")
	if err := m.Put(uint32(x.pod.HostIfindex), slot); err != nil {
		x.Fatal(err)
	}
	x.w.state("shop/frontend", "enforced")
	x.allowed("with its entry", func(tok packettest.Token) []byte { return x.udp(web(0), controlPort, tok) })
}
