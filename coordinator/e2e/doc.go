// Package e2e tests whole coordinators as processes, with real faults: SIGKILL at every boundary, SIGSTOP past the
// lease, an etcd answer eaten on its way back, members and coordinators that die under load. It has no code of its own.
//
// Its law: the participants count for themselves, and what they count is compared with what the client was told.
package e2e
