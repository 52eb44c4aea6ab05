using Akka.Actor;
using Akka.Serialization;

namespace Dmp.Actors.Journal;

/// <summary>
/// Brings events and snapshots of the patch journal into the database and back, as protobuf with manifests of two letters.
/// Bound in akka.hocon, with an identifier that is stored beside every event and so must never change.
/// </summary>
/// <param name="system">The actor system.</param>
public sealed class JournalSerializer(ExtendedActorSystem system) : SerializerWithStringManifest(system)
{
    /// <inheritdoc/>
    public override byte[] ToBinary(object obj) => JournalCodec.Encode(obj);

    /// <inheritdoc/>
    /// <exception cref="JournalFormatException">The bytes are damaged, or a newer version of Dmp wrote them.</exception>
    public override object FromBinary(byte[] bytes, string manifest) => JournalCodec.Decode(bytes, manifest);

    /// <inheritdoc/>
    public override string Manifest(object o) => JournalCodec.Manifest(o);
}
