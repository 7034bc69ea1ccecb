package mapstate

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/policy"
)

// serviceName is one port of a Service for one family.
type serviceName struct {
	namespace, name string
	index           int // of the port in the Service
	v6              bool
}

// servicePort is a serviceName with the keys it answers at and its backends.
type servicePort struct {
	name     serviceName
	id       uint32
	keys     []ServiceKey
	backends []netip.AddrPort
}

func serviceKey(a netip.Addr, port uint16, proto packet.Protocol) ServiceKey {
	return ServiceKey{Addr: a.As16(), Port: port, Proto: uint8(proto)}
}

// nodePortKey stands for every node's address of a family.
func nodePortKey(v6 bool, port uint16, proto packet.Protocol) ServiceKey {
	k := ServiceKey{Port: port, Proto: uint8(proto), NodePort: 4}
	if v6 {
		k.NodePort = 6
	}
	return k
}

// setServices takes the Services apart by port and family. Where two claim an
// address and port, the first by namespace and name has it, as in Evaluate.
func (w *World) setServices(services []policy.Service) {
	sorted := slices.Clone(services)
	slices.SortFunc(sorted, func(a, b policy.Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	taken := map[ServiceKey]struct{}{}
	w.servicePorts = w.servicePorts[:0]
	for i := range sorted {
		s := &sorted[i]
		for index, p := range s.Ports {
			for _, v6 := range []bool{false, true} {
				sp := servicePort{name: serviceName{s.Namespace, s.Name, index, v6}}
				claim := func(k ServiceKey) {
					if _, ok := taken[k]; !ok {
						taken[k] = struct{}{}
						sp.keys = append(sp.keys, k)
					}
				}
				for _, ip := range s.IPs {
					if ip.Is6() == v6 {
						claim(serviceKey(ip, p.Port, p.Protocol))
					}
				}
				if p.NodePort != 0 {
					claim(nodePortKey(v6, p.NodePort, p.Protocol))
				}
				if len(sp.keys) == 0 {
					continue
				}
				for _, b := range p.Backends {
					if b.Addr().Is6() == v6 {
						sp.backends = append(sp.backends, b)
					}
				}
				slices.SortFunc(sp.backends, netip.AddrPort.Compare)
				sp.backends = slices.Compact(sp.backends)
				id, ok := w.serviceIDs[sp.name]
				if !ok {
					id = uint32(len(w.serviceIDs) + 1)
					w.serviceIDs[sp.name] = id
				}
				sp.id = id
				w.servicePorts = append(w.servicePorts, sp)
			}
		}
	}
}

// updateServices computes every service from its backends' present classes.
func (w *World) updateServices() {
	want := make(map[ServiceKey]Service, len(w.services))
	for i := range w.servicePorts {
		sp := &w.servicePorts[i]
		s := w.combine(sp)
		for _, k := range sp.keys {
			want[k] = s
		}
	}
	w.changes.Services = map[ServiceKey]Service{}
	for k, s := range want {
		if old, ok := w.services[k]; !ok || old != s {
			w.changes.Services[k] = s
		}
	}
	for k := range w.services {
		if _, ok := want[k]; !ok {
			w.changes.ServicesRemoved = append(w.changes.ServicesRemoved, k)
		}
	}
	w.services = want
}

func (w *World) combine(sp *servicePort) Service {
	s := Service{ID: sp.id}
	for _, b := range sp.backends {
		c := Combo{Class: w.trie.lookup(b.Addr()), Port: b.Port()}
		if slices.Contains(s.Combos[:s.NCombos], c) {
			continue
		}
		if s.NCombos == MaxCombos {
			return Service{ID: sp.id, NCombos: CombosMany}
		}
		s.Combos[s.NCombos] = c
		s.NCombos++
	}
	return s
}

// SelfBackend says that an address is a backend of a service.
type SelfBackend struct {
	Service uint32 // Service.ID
	Others  uint32 // number of its other backends
}

// SelfBackends returns, for each of the addresses, the services behind which
// it stands, sorted by ID.
func (w *World) SelfBackends(addrs []netip.Addr) []SelfBackend {
	var out []SelfBackend
	for i := range w.servicePorts {
		sp := &w.servicePorts[i]
		self := 0
		for _, b := range sp.backends {
			if slices.Contains(addrs, b.Addr()) {
				self++
			}
		}
		if self > 0 {
			out = append(out, SelfBackend{sp.id, uint32(len(sp.backends) - self)})
		}
	}
	return out
}
