package trackerpb

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// TestOlder: what a node or tracker that does not know Upstream makes of a message is what it
// would make of it without.
func TestOlder(t *testing.T) {
	older := protodesc.ToFileDescriptorProto(File_control_trackerpb_tracker_proto)
	for _, m := range older.MessageType {
		m.Field = slices.DeleteFunc(m.Field, func(f *descriptorpb.FieldDescriptorProto) bool {
			switch m.GetName() + "." + f.GetName() {
			case "LeaseProgress.registry", "LeaseDone.mismatch", "Peers.upstream":
				return true
			}
			return false
		})
	}
	file, err := protodesc.NewFile(older, nil)
	if err != nil {
		t.Fatal(err)
	}
	blob := &Blob{Digest: make([]byte, 32), Size: 1}
	failed := LeaseDone{Blob: blob, Outcome: Outcome_OUTCOME_FAILED, Error: "lies"}
	for _, tt := range []struct{ is, was proto.Message }{
		{
			&FromAgent{
				Progress: []*LeaseProgress{{Blob: blob, Bytes: 1, Registry: "r.example"}},
				Done:     []*LeaseDone{{Blob: blob, Outcome: failed.Outcome, Error: failed.Error, Mismatch: true}},
			},
			&FromAgent{Progress: []*LeaseProgress{{Blob: blob, Bytes: 1}}, Done: []*LeaseDone{&failed}},
		},
		{
			&ToAgent{Peers: []*Peers{{Blob: blob, Gone: []string{"a"}, Upstream: &Upstream{Registries: []string{"r.example"}, Mismatch: true}}}},
			&ToAgent{Peers: []*Peers{{Blob: blob, Gone: []string{"a"}}}},
		},
	} {
		sent, err := proto.Marshal(tt.is)
		if err != nil {
			t.Fatal(err)
		}
		read := dynamicpb.NewMessage(file.Messages().ByName(tt.is.ProtoReflect().Descriptor().Name()))
		if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(sent, read); err != nil {
			t.Fatal(err)
		}
		known, err := proto.Marshal(read)
		if err != nil {
			t.Fatal(err)
		}
		got := tt.was.ProtoReflect().New().Interface()
		if err := proto.Unmarshal(known, got); err != nil || !proto.Equal(got, tt.was) {
			t.Errorf("%v (%v), want %v", got, err, tt.was)
		}
	}
}
