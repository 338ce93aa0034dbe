from setuptools import setup

setup(
    name="emostream_ros",
    version="0.2.0",
    packages=["emostream_ros"],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/emostream_ros"]),
        ("share/emostream_ros", ["package.xml"]),
    ],
    install_requires=["setuptools", "pyzmq"],
    entry_points={"console_scripts": ["bridge = emostream_ros.bridge:main"]},
)
