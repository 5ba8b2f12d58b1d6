"""Pack key and chain into a PFX for Windows IIS, and print the PowerShell for it.

Call    none, a local step
RFC     7292, 8018
Reads   state/fullchain.pem, state/certificate.key; acme.ini: [iis] windows, password_file
Writes  state/certificate.pfx
Run     python 10_pkcs12_iis.py
Lab     docs/labs/10.md, 10 minutes; promised in part 1
Next    copy certificate.pfx to the server and run the printed lines there, as Administrator
"""

import getpass
import sys
from pathlib import Path

from cryptography import x509 as crypto_x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import PrivateFormat, pkcs12

from common import config, install, show, x509
from common.failure import Usage

# Windows Server up to 2016 reads only the encryption of 1999; what came after it reads today's.
LEGACY_WINDOWS = ("2012", "2016")


def create_pfx(
    key: x509.PrivateKey, chain: list[crypto_x509.Certificate], password: str, windows: str
) -> bytes:
    """A PKCS#12 file with the key, its certificate, and the whole chain.

    windows: the Windows Server version that will read it, such as "2016"
    """
    builder = PrivateFormat.PKCS12.encryption_builder()
    if windows in LEGACY_WINDOWS:
        encryption = builder.kdf_rounds(50_000).key_cert_algorithm(pkcs12.PBES.PBESv1SHA1And3KeyTripleDESCBC)
        encryption = encryption.hmac_hash(hashes.SHA1())  # noqa: S303 - nothing else is read there
    else:
        encryption = builder.kdf_rounds(50_000).key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
        encryption = encryption.hmac_hash(hashes.SHA256())
    # Windows shows this name beside the certificate, in the store and in IIS.
    friendly_name = " ".join([*x509.dns_names(chain[0])[:1], x509.serial_hex(chain[0])])
    return pkcs12.serialize_key_and_certificates(
        friendly_name.encode(), key, chain[0], chain[1:], encryption.build(password.encode())
    )


def powershell(pfx: Path, leaf: crypto_x509.Certificate) -> str:
    """The lines that import the PFX and bind it to the site, for an administrator's PowerShell.

    They ask for the password. Each host gets a binding of its own, told apart by SNI (SslFlags 1), so that several
    sites share port 443. IIS takes a host such as *.example.com from Windows Server 2016 on.
    """
    thumbprint = leaf.fingerprint(hashes.SHA1()).hex().upper()  # noqa: S303 - Windows' name for a certificate
    hosts = ", ".join("'" + name.replace("'", "''") + "'" for name in x509.dns_names(leaf))
    return f"""# {pfx}
$ErrorActionPreference = 'Stop'
Import-Module WebAdministration
$Path = 'C:\\{pfx.name}'       # where you copied it
$Site = 'Default Web Site'
$Password = Read-Host -AsSecureString 'Password of the PFX file'
Import-PfxCertificate -FilePath $Path -CertStoreLocation Cert:\\LocalMachine\\My -Password $Password
foreach ($Name in {hosts}) {{
    $Binding = @{{ Name = $Site; Protocol = 'https'; Port = 443; HostHeader = $Name }}
    if (-not (Get-WebBinding @Binding)) {{ New-WebBinding @Binding -SslFlags 1 }}
    (Get-WebBinding @Binding).AddSslCertificate('{thumbprint}', 'My')
}}
Remove-Item $Path"""


def read_password(password_file: Path | None) -> str:
    """The password from its file, else from the keyboard; never from the command line, which others can see."""
    if password_file:
        try:
            password = password_file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError):
            raise Usage(
                f"[iis] password_file: cannot read {password_file}", "write the password there"
            ) from None
    elif sys.stdin.isatty():
        password = getpass.getpass("password for the PFX file: ")
        if getpass.getpass("the same again: ") != password:
            raise Usage("the two passwords differ", "run it again")
    else:
        raise Usage(
            "there is no one to ask for a password",
            "write it to a file, and name that in [iis] password_file",
        )
    if not password:
        raise Usage("the password is empty", "choose one: the file holds the private key")
    return show.secret(password)


def main(settings: config.Settings) -> None:
    state = settings.state
    pair = install.load_key_pair(state, [])
    key = x509.load_private_key(pair.private_key_pem.encode(), state.path("certificate.key"))

    show.step(f"PFX for Windows Server {settings.iis.windows}", "RFC 7292")
    password = read_password(settings.iis.password_file)
    path = state.write("certificate.pfx", create_pfx(key, pair.chain, password, settings.iis.windows))
    show.wrote(path)
    show.say("    on the server, in an Administrator's PowerShell:")
    show.result(powershell(path, pair.leaf))


if __name__ == "__main__":
    config.run(main, __doc__)
