package kube_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"golang.org/x/tools/txtar"

	"github.com/postern-dev/postern/internal/kube"
	"github.com/postern-dev/postern/internal/policy"
)

var update = flag.Bool("update", false, "write the expected parts of testdata")

// TestGolden translates input.yaml of every file in testdata and compares what
// comes out, as text, with the other parts. A part that the file leaves out is
// not compared; -update writes those that are there.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			w := load(t, part(ar, "input.yaml"))
			s := w.Snapshot(time.Unix(0, 0))
			got := map[string]string{
				"policies.txt": printPolicies(s), "state.txt": printState(s), "findings.txt": printFindings(w),
			}
			for i, f := range ar.Files {
				text, ok := got[f.Name]
				if !ok {
					continue
				}
				if diff := cmp.Diff(string(f.Data), text); diff != "" && !*update {
					t.Errorf("%s (-want +got)\n%s", f.Name, diff)
				}
				ar.Files[i].Data = []byte(text)
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func part(ar *txtar.Archive, name string) []byte {
	for _, f := range ar.Files {
		if f.Name == name {
			return f.Data
		}
	}
	return nil
}

// load sets every document of data; documents that are not decoded fail the test.
func load(t *testing.T, data []byte) *kube.World {
	t.Helper()
	w := kube.NewWorld(kube.Options{})
	for _, d := range decodeAll(t, data) {
		if d.Object == nil {
			t.Fatalf("not decoded: %v", d.Findings)
		}
		if _, err := w.Set(d.Object, d.Findings); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func decodeAll(t *testing.T, data []byte) []kube.Decoded {
	t.Helper()
	var out []kube.Decoded
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var n yaml.Node
		err := dec.Decode(&n)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, kube.Decode(&n))
	}
}

func printFindings(w *kube.World) string {
	var b strings.Builder
	for _, f := range w.Findings() {
		fmt.Fprintf(&b, "%d: %s\n", f.Line, f)
	}
	return b.String()
}

func printPolicies(s *policy.Snapshot) string {
	var b strings.Builder
	for _, t := range s.Tiers {
		if !slices.Contains(policy.BuiltinTiers(), t) && !strings.HasPrefix(t.Name, "(") {
			fmt.Fprintf(&b, "tier %s order=%d defaultDeny=%t\n", t.Name, t.Order, t.DefaultDeny)
		}
	}
	for i := range s.Policies {
		p := &s.Policies[i]
		fmt.Fprintf(&b, "%s tier=%s priority=%d%s\n", p.Key(), p.Tier, p.Priority, flagged(p.Invalid, " invalid"))
		fmt.Fprintf(&b, "  subject %s\n", printSubject(p.Subject))
		for _, dir := range policy.Directions {
			if p.Isolates[dir] {
				fmt.Fprintf(&b, "  isolates %s\n", dir)
			}
			for _, r := range p.Rules[dir] {
				b.WriteString("  " + printRule(dir, r) + "\n")
			}
		}
	}
	for _, set := range s.Sets {
		fmt.Fprintf(&b, "set %s/%s %s%s%s\n", set.Ref.Namespace, set.Ref.Name,
			printNetworks(set.Networks, set.Except), flagged(len(set.DomainNames) > 0, fmt.Sprint(" names ", set.DomainNames)), flagged(set.Invalid, " invalid"))
	}
	return b.String()
}

func flagged(b bool, text string) string {
	if b {
		return text
	}
	return ""
}

func printSubject(s policy.Subject) string {
	out := "none"
	switch {
	case s.Any:
		out = "any"
	case s.Selects && s.Namespace != "":
		out = s.Namespace + "/" + s.Pods.String()
	case s.Selects:
		out = "{" + s.Namespaces.String() + "}/" + s.Pods.String()
	}
	if s.ServiceAccounts != nil {
		out += fmt.Sprint(" serviceAccounts ", s.ServiceAccounts)
	}
	return out
}

func printRule(dir policy.Direction, r policy.Rule) string {
	out := fmt.Sprintf("%s[%d]%s %s%s", dir, r.Index, flagged(r.Name != "", fmt.Sprintf(" %q", r.Name)), r.Action, flagged(r.Invalid, " invalid"))
	if !r.ExpiresAt.IsZero() {
		out += " until " + r.ExpiresAt.Format(time.RFC3339)
	}
	if r.Reason != "" {
		out += fmt.Sprintf(" because %q", r.Reason)
	}
	var peers, ports []string
	for _, p := range r.Peers {
		peers = append(peers, printPeer(p))
	}
	for _, p := range r.Ports {
		ports = append(ports, printPort(p))
	}
	if r.AnyPeer {
		peers = []string{"any"}
	}
	if r.AnyPort {
		ports = []string{"any"}
	}
	return out + " peers=[" + strings.Join(peers, "; ") + "] ports=[" + strings.Join(ports, "; ") + "]"
}

func printPeer(p policy.Peer) string {
	switch p.Kind {
	case policy.PeerNetworks:
		return printNetworks(p.Networks, p.Except)
	case policy.PeerPods:
		if p.Pods.Namespace != "" {
			return "pods " + p.Pods.Namespace + "/" + p.Pods.Pods.String()
		}
		return "pods {" + p.Pods.Namespaces.String() + "}/" + p.Pods.Pods.String()
	case policy.PeerNodes:
		return "nodes " + p.Nodes.String()
	case policy.PeerService:
		return "service " + p.Service.Namespace + "/" + p.Service.Name
	case policy.PeerSet:
		return "set " + p.Set.Namespace + "/" + p.Set.Name
	case policy.PeerDomainNames:
		return fmt.Sprint("names ", p.DomainNames)
	case policy.PeerNone:
	}
	return "nothing"
}

func printNetworks(networks, except []netip.Prefix) string {
	if len(except) > 0 {
		return fmt.Sprint("networks ", networks, " except ", except)
	}
	return fmt.Sprint("networks ", networks)
}

func printPort(p policy.PortMatch) string {
	switch {
	case p.Named != "" && p.AnyProtocol:
		return "*/" + p.Named
	case p.Named != "":
		return p.Protocol.String() + "/" + p.Named
	case p.First == p.Last:
		return fmt.Sprintf("%s/%d", p.Protocol, p.First)
	}
	return fmt.Sprintf("%s/%d-%d", p.Protocol, p.First, p.Last)
}

func printState(s *policy.Snapshot) string {
	var b strings.Builder
	for _, n := range s.Namespaces {
		fmt.Fprintf(&b, "namespace %s %v\n", n.Name, n.Labels)
	}
	for _, n := range s.Nodes {
		fmt.Fprintf(&b, "node %s %v %v\n", n.Name, n.IPs, n.Labels)
	}
	for _, p := range s.Pods {
		fmt.Fprintf(&b, "pod %s %v %v sa=%s node=%s%s\n", p.Key(), p.IPs, p.Labels, p.ServiceAccount, p.Node, flagged(p.HostNetwork, " hostNetwork"))
		for _, cp := range p.Ports {
			fmt.Fprintf(&b, "  port %s %s/%d\n", cp.Name, cp.Protocol, cp.Port)
		}
	}
	for _, svc := range s.Services {
		fmt.Fprintf(&b, "service %s/%s %v\n", svc.Namespace, svc.Name, svc.IPs)
		for _, sp := range svc.Ports {
			fmt.Fprintf(&b, "  port %q %s/%d%s -> %v\n", sp.Name, sp.Protocol, sp.Port,
				flagged(sp.NodePort != 0, fmt.Sprintf(" node %d", sp.NodePort)), sp.Backends)
		}
	}
	return b.String()
}
