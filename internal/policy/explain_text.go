package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// String prints e as plain text, the verdict first.
func (e Explanation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s of %s: %s%s\n", e.Direction, e.Pod, e.Packet, bracketed(e.Remote))
	fmt.Fprintf(&b, "%s\n  %s\n", strings.ToUpper(e.Decision.String()[:1])+e.Decision.String()[1:], e.Note)
	if e.Service == nil {
		printTiers(&b, "", e.Tiers)
		return b.String()
	}
	count := "1 backend"
	if n := len(e.Service.Backends); n != 1 {
		count = fmt.Sprintf("%d backends", n)
	}
	fmt.Fprintf(&b, "service %s/%s port %d, %s\n", e.Service.Namespace, e.Service.Name, e.Service.Port, count)
	shown := map[Decision]bool{}
	for _, bt := range e.Service.Backends {
		fmt.Fprintf(&b, "backend %s%s: %s\n", bt.Backend, bracketed(bt.Remote), bt.Decision)
		if shown[bt.Decision] {
			continue // as another backend before it
		}
		shown[bt.Decision] = true
		fmt.Fprintf(&b, "  %s\n", bt.Note)
		printTiers(&b, "  ", bt.Tiers)
	}
	return b.String()
}

func bracketed(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return " (" + strings.Join(names, ", ") + ")"
}

func printTiers(b *strings.Builder, indent string, tiers []TierTrace) {
	for _, t := range tiers {
		if t.Reached && !isBuiltin(t.Tier) && len(t.Policies) == 0 && t.Others == 0 {
			continue // nobody uses it
		}
		outcome := t.Outcome
		if !t.Reached {
			outcome = "not reached"
		}
		if t.Others == 1 {
			outcome += " (1 policy does not select the pod)"
		} else if t.Others > 0 {
			outcome += fmt.Sprintf(" (%d policies do not select the pod)", t.Others)
		}
		fmt.Fprintf(b, "%stier %s: %s\n", indent, t.Tier, outcome)
		for _, p := range t.Policies {
			printPolicy(b, indent+"  ", p)
		}
	}
}

func isBuiltin(tier string) bool {
	return slices.ContainsFunc(BuiltinTiers(), func(b Tier) bool { return b.Name == tier })
}

func printPolicy(b *strings.Builder, indent string, p PolicyTrace) {
	name := p.Name
	if p.Namespace != "" {
		name = p.Namespace + "/" + name
	}
	fmt.Fprintf(b, "%s%s %s", indent, p.Kind, name)
	if p.Priority != 0 {
		fmt.Fprintf(b, " priority %d", p.Priority)
	}
	if p.Note != "" {
		b.WriteString(": " + p.Note)
	}
	b.WriteByte('\n')
	for _, r := range p.Rules {
		mark := " "
		if r.Matched {
			mark = ">"
		}
		fmt.Fprintf(b, "%s%s %s[%d] ", indent, mark, r.Rule.Direction, r.Rule.Index)
		if r.Rule.Name != "" {
			b.WriteString(strconv.Quote(r.Rule.Name) + " ")
		}
		fmt.Fprintf(b, "%s %s: %s", r.Action, r.Says, r.Why)
		if r.Reason != "" {
			b.WriteString(" [" + r.Reason + "]")
		}
		b.WriteByte('\n')
	}
}

// ruleText writes what a rule is about: "to pods app=db in shop, 10.0.0.0/8 on tcp/443".
func ruleText(r *Rule, dir Direction) string {
	out := "to "
	if dir == Ingress {
		out = "from "
	}
	switch {
	case r.AnyPeer:
		out += "anywhere"
	case len(r.Peers) == 0:
		out += "nothing"
	default:
		parts := make([]string, 0, len(r.Peers))
		for i := range r.Peers {
			parts = append(parts, peerText(&r.Peers[i]))
		}
		out += few(parts)
	}
	if r.AnyPort {
		return out
	}
	parts := make([]string, 0, len(r.Ports))
	for _, m := range r.Ports {
		parts = append(parts, m.String())
	}
	if len(parts) == 0 {
		return out + " on no port"
	}
	return out + " on " + few(parts)
}

// few joins texts, and counts what would be too long to read.
func few(parts []string) string {
	const most = 4
	if len(parts) > most {
		return strings.Join(parts[:most], ", ") + fmt.Sprintf(" and %d more", len(parts)-most)
	}
	return strings.Join(parts, ", ")
}

// String prints m as "tcp/80", "tcp/80-90", "icmp", "tcp/http" or, for any protocol, "port http".
func (m PortMatch) String() string {
	switch {
	case m.Named != "" && m.AnyProtocol:
		return "port " + m.Named
	case m.Named != "":
		return m.Protocol.String() + "/" + m.Named
	}
	return PortRange{m.Protocol, m.First, m.Last}.String()
}

func peerText(p *Peer) string {
	switch p.Kind {
	case PeerNetworks:
		return networksText(p.Networks, p.Except)
	case PeerPods:
		out := "pods"
		if len(p.Pods.Pods.Requirements) > 0 {
			out += " " + p.Pods.Pods.String()
		}
		switch {
		case p.Pods.Namespace != "":
			return out + " in " + p.Pods.Namespace
		case len(p.Pods.Namespaces.Requirements) > 0:
			return out + " in namespaces " + p.Pods.Namespaces.String()
		}
		return out + " in all namespaces"
	case PeerNodes:
		if len(p.Nodes.Requirements) == 0 {
			return "all nodes"
		}
		return "nodes " + p.Nodes.String()
	case PeerService:
		return "service " + p.Service.Namespace + "/" + p.Service.Name
	case PeerSet:
		if p.Set.Namespace == "" {
			return "set " + p.Set.Name
		}
		return "set " + p.Set.Namespace + "/" + p.Set.Name
	case PeerDomainNames:
		return "names " + few(p.DomainNames)
	case PeerNone:
	}
	return "nothing"
}

func networksText(networks, except []netip.Prefix) string {
	texts := func(list []netip.Prefix) string {
		parts := make([]string, 0, len(list))
		for _, p := range list {
			parts = append(parts, p.String())
		}
		return few(parts)
	}
	if len(networks) == 0 {
		return "nothing"
	}
	if len(except) == 0 {
		return texts(networks)
	}
	return texts(networks) + " except " + texts(except)
}
